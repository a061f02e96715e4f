// influence: torch tensors -> InfluenceParams -> kernel.
#include "kernels/influence.h"

#include <optional>

#include "cuda/bind.h"

namespace graceful_fast {
namespace {

const void* of_each_class(const Op& op, const std::optional<Tensor>& tensor, const char* name, const Tensor& logits) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == logits.size(1) && tensor->is_contiguous() &&
               tensor->scalar_type() == logits.scalar_type(),
           "influence", name, ": expected a contiguous vector of ", logits.size(1), ", of the logits' dtype");
  return op.input<void>(*tensor, name);
}

// Changes logits and statistics; returns the factor of what was summed before.
Tensor influence(const Tensor& logits, const Tensor& statistics, const Tensor& target,
                 const std::optional<Tensor>& factor, const std::optional<Tensor>& bias, int64_t first_class) {
  const Op op("influence", logits);
  const Matrix block = op.rows(logits, "logits");
  const int64_t n = block.rows;
  GF_CHECK(logits.is_contiguous() && (block.type == Element::float32 || block.type == Element::float64), "influence",
           "logits: expected a contiguous float32 or float64 matrix");
  GF_CHECK(statistics.dim() == 2 && statistics.size(0) == n && statistics.size(1) == 2 && statistics.is_contiguous() &&
               statistics.scalar_type() == ScalarType::Double,
           "influence", "statistics: expected a contiguous float64 (", n, ", 2)");
  GF_CHECK(
      target.dim() == 1 && target.size(0) == n && target.scalar_type() == ScalarType::Long && target.is_contiguous(),
      "influence", "target: expected a contiguous int64 vector of ", n);
  const Tensor shrink = op.empty({n, 1}, logits.scalar_type());
  launch_influence(
      {const_cast<void*>(block.data), n, block.columns, block.type, of_each_class(op, factor, "factor", logits),
       of_each_class(op, bias, "bias", logits), op.input<int64_t>(target, "target"), first_class,
       op.update<double>(statistics, "statistics"), op.output<void>(shrink, "shrink")},
      op.stream());
  return shrink;
}

GF_DEVICE_LIBRARY_IMPL(m) { m.impl("influence", TORCH_BOX(&influence)); }

}  // namespace
}  // namespace graceful_fast
