// distill: what the bindings of every device check of their arguments, without a look at the tensors' values.
#pragma once
#include <algorithm>
#include <optional>

#include "math/row_statistics.h"
#include "tensors.h"

namespace graceful_fast {

inline void check_integers(const Tensor& tensor, const char* name) {
  GF_CHECK(tensor.dim() == 1 && tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous(), "distill", name,
           ": expected a contiguous int64 vector");
}
inline void check_rows(const Tensor& tensor, const char* name, int64_t n, int64_t columns) {
  GF_CHECK(tensor.numel() == n * columns && tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous(),
           "distill", name, ": expected contiguous float64 of shape (", n, ", ", columns, ")");
}

inline void check_choices(int64_t divergence, int64_t focus, int64_t reduction, double temperature) {
  GF_CHECK(temperature > 0, "distill", "temperature: expected a positive number, got ", temperature);
  GF_CHECK(divergence >= 0 && divergence <= 2 && focus >= 0 && focus <= 4 && reduction >= 0 && reduction <= 2,
           "distill", "divergence, focus, reduction: expected 0..2, 0..4, 0..2, got ", divergence, ", ", focus, ", ",
           reduction);
}

inline void check_batch(const Matrix& new_logits, const Matrix& old_logits, int64_t n) {
  GF_CHECK(new_logits.rows == n, "distill", "new_logits: expected ", n, " rows as target, got ", new_logits.rows);
  GF_CHECK(old_logits.rows == n, "distill", "old_logits: expected ", n, " rows as target, got ", old_logits.rows);
}
inline void check_pairs(const std::optional<Tensor>& new_column, const std::optional<Tensor>& old_column) {
  if (!new_column) return;
  GF_CHECK(old_column && old_column->numel() == new_column->numel(), "distill",
           "new_column, old_column: expected as many of one as of the other");
  check_integers(*new_column, "new_column");
  check_integers(*old_column, "old_column");
}

inline void check_grad_output(const Tensor& grad_output, int64_t n, bool wide) {
  GF_CHECK(grad_output.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float), "distill",
           "grad_output: expected the loss's dtype");
  GF_CHECK(grad_output.dim() == 0 || (grad_output.dim() == 1 && grad_output.size(0) == n), "distill",
           "grad_output: expected the loss's shape, () or (", n, ",)");
}

// T^2 KL is at its limits beyond, and these bounds keep 1/T and the squares of (logit differences)/T normal in float32.
inline double within_range(double temperature) { return std::clamp(temperature, 0x1p-120, 0x1p48); }

}  // namespace graceful_fast
