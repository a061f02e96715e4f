// flips: torch tensors -> FlipsParams -> kernel.
#include "cpu/flips.h"

#include <algorithm>
#include <tuple>

#include "cpu/bind.h"

namespace graceful_fast {
namespace {

// (N, classes)
Matrix scores(const Tensor& tensor, const char* name, int64_t n) {
  const Matrix rows = matrix(tensor, "flips", name);
  GF_CHECK(rows.rows == n, "flips", name, ": expected ", n, " rows as target, got ", rows.rows);
  return rows;
}

// (outcome, first row whose target is a class of neither model, or -1)
std::tuple<Tensor, Tensor> flips(const Tensor& old_scores, const Tensor& new_scores, const Tensor& target,
                                 int64_t topk) {
  const int64_t n = target.numel();
  GF_CHECK(target.dim() == 1 && target.scalar_type() == ScalarType::Long && target.is_contiguous(), "flips",
           "target: expected a contiguous int64 vector");
  GF_CHECK(topk >= 1, "flips", "topk: expected at least 1, got ", topk);
  Tensor outcome = empty({n}, ScalarType::Byte);
  Tensor status = empty({1}, ScalarType::Long);
  const FlipsParams params{scores(old_scores, "old", n), scores(new_scores, "new", n), pointer<int64_t>(target),
                           mutable_pointer<uint8_t>(outcome), topk};
  const int64_t classes = std::max(params.old_scores.columns, params.new_scores.columns);
  GF_CHECK(n == 0 || std::min(params.old_scores.columns, params.new_scores.columns) >= 1, "flips",
           "old, new: expected at least one class");
  int64_t& bad = *mutable_pointer<int64_t>(status) = -1;
  for (int64_t i = 0; i < n && bad < 0; ++i) {
    if (params.target[i] < 0 || params.target[i] >= classes) bad = i;
  }
  if (bad >= 0) return {outcome, status};
  const FlipsKernels& kernels = GF_CHOOSE_TABLE(flips);
  // 2^16 scores a task: some tens of microseconds, far above the cost of handing it to a thread.
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, classes));
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { kernels.run(params, begin, end); });
  return {outcome, status};
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) { m.impl("flips", TORCH_BOX(&flips)); }

}  // namespace
}  // namespace graceful_fast
