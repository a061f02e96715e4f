// influence: torch tensors -> InfluenceParams -> kernel.
#include "cpu/influence.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "cpu/bind.h"

namespace graceful_fast {
namespace {

const void* of_each_class(const std::optional<Tensor>& tensor, const char* name, const Tensor& logits) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == logits.size(1) && tensor->is_contiguous() &&
               tensor->scalar_type() == logits.scalar_type(),
           "influence", name, ": expected a contiguous vector of ", logits.size(1), ", of the logits' dtype");
  return tensor->const_data_ptr();
}

// Changes logits and statistics; returns the factor of what was summed before.
Tensor influence(const Tensor& logits, const Tensor& statistics, const Tensor& target,
                 const std::optional<Tensor>& factor, const std::optional<Tensor>& bias, int64_t first_class) {
  const Matrix block = matrix(logits, "influence", "logits");
  const int64_t n = block.rows;
  GF_CHECK(logits.is_contiguous() && (block.type == Element::float32 || block.type == Element::float64), "influence",
           "logits: expected a contiguous float32 or float64 matrix");
  GF_CHECK(block.columns <= std::numeric_limits<int>::max(), "influence", "logits: expected at most 2^31 - 1 classes");
  GF_CHECK(statistics.dim() == 2 && statistics.size(0) == n && statistics.size(1) == 2 && statistics.is_contiguous() &&
               statistics.scalar_type() == ScalarType::Double,
           "influence", "statistics: expected a contiguous float64 (", n, ", 2)");
  GF_CHECK(
      target.dim() == 1 && target.size(0) == n && target.scalar_type() == ScalarType::Long && target.is_contiguous(),
      "influence", "target: expected a contiguous int64 vector of ", n);
  Tensor shrink = empty({n, 1}, logits.scalar_type());
  const InfluenceParams params{logits.mutable_data_ptr(),
                               block.columns,
                               block.type,
                               of_each_class(factor, "factor", logits),
                               of_each_class(bias, "bias", logits),
                               pointer<int64_t>(target),
                               first_class,
                               mutable_pointer<InfluenceRow>(statistics),
                               mutable_pointer<void>(shrink)};
  const InfluenceKernels& kernels = GF_CHOOSE_TABLE(influence);
  // 2^14 classes a task: some tens of microseconds, far above the cost of handing it to a thread.
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, block.columns));
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { kernels.run(params, begin, end); });
  return shrink;
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) { m.impl("influence", TORCH_BOX(&influence)); }

}  // namespace
}  // namespace graceful_fast
