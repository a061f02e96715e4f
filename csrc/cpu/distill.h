// distill: focal distillation loss = cross-entropy of the new logits + weighted divergence from the old ones, per row.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/matrix.h"

namespace graceful_fast {

enum class DivergenceKind : int64_t { kl, logits };
enum class Focus : int64_t { old_correct, negative_flip, new_incorrect, all, weight };

struct DistillForward {
  Matrix new_logits, old_logits;  // old_logits.columns <= new_logits.columns
  const int64_t* target;          // [B] 0 <= y < classes, or ignore_index; checked by the binding
  const double* weight;           // [B] focal weights, null unless focus is `weight`
  double* statistics;             // [B, kRowStatistics] out
  double* cross_entropy;          // [B] out: loss of each row, 0 for an ignored one
  double* divergence;             // [B] out: focal weight times divergence, 0 where the weight is 0
  DivergenceKind kind;
  Focus focus;
  double alpha, beta, temperature, label_smoothing;
  int64_t ignore_index;
};

struct DistillBackward {
  Matrix new_logits, old_logits;
  const int64_t* target;       // [B]
  const double* statistics;    // [B, kRowStatistics]
  const void* grad_output;     // float32 or float64, as the loss: one number or [B]
  int64_t grad_output_stride;  // elements; 0 for one number
  void* gradient;              // [B, classes] out, of the new logits' type, contiguous
  DivergenceKind kind;
  double temperature, label_smoothing;
};

// What a row is computed in: float64 logits of either model must not be rounded before they are compared or subtracted.
inline bool computes_in_float64(const Matrix& new_logits, const Matrix& old_logits) {
  return new_logits.type == Element::float64 || old_logits.type == Element::float64;
}

struct DistillKernels {
  void (*forward)(const DistillForward&, int64_t begin, int64_t end);  // rows begin..end-1
  void (*backward)(const DistillBackward&, int64_t begin, int64_t end);
};

GF_DECLARE_TABLE(DistillKernels, distill)

}  // namespace graceful_fast
