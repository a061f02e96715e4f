// flips: torch tensors -> FlipsParams -> kernel, once for each model.
#include "kernels/flips.h"

#include <algorithm>
#include <tuple>

#include "cuda/bind.h"

namespace graceful_fast {
namespace {

// (outcome, first row whose target is a class of neither model, or -1)
std::tuple<Tensor, Tensor> flips(const Tensor& old_scores, const Tensor& new_scores, const Tensor& target,
                                 int64_t topk) {
  const Op op("flips", target);
  const int64_t n = target.numel();
  GF_CHECK(target.dim() == 1 && target.scalar_type() == ScalarType::Long && target.is_contiguous(), "flips",
           "target: expected a contiguous int64 vector");
  GF_CHECK(topk >= 1, "flips", "topk: expected at least 1, got ", topk);
  const Matrix models[] = {op.rows(old_scores, "old"), op.rows(new_scores, "new")};
  for (const Matrix& model : models) {
    GF_CHECK(model.rows == n, "flips", "old, new: expected ", n, " rows as target, got ", model.rows);
    GF_CHECK(n == 0 || model.columns >= 1, "flips", "old, new: expected at least one class");
  }
  Tensor outcome = op.empty({n}, ScalarType::Byte), status = op.empty({1}, ScalarType::Long);
  torch::stable::fill_(status, -1);
  FlipsParams params{{}, op.input<int64_t>(target, "target"),    std::max(models[0].columns, models[1].columns), topk,
                     0,  op.output<uint8_t>(outcome, "outcome"), op.update<unsigned long long>(status, "status")};
  for (params.bit = 0; params.bit < 2; ++params.bit) {
    params.scores = models[params.bit];
    launch_flips(params, op.stream());
  }
  return {outcome, status};
}

GF_DEVICE_LIBRARY_IMPL(m) { m.impl("flips", TORCH_BOX(&flips)); }

}  // namespace
}  // namespace graceful_fast
