// distill: focal distillation loss = cross-entropy of the new logits + weighted divergence from the old ones, per row.
// Both directions take a block of a row's classes: all of them, or as many as fit a workspace or a shard.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "math/matrix.h"
#include "math/row_statistics.h"

namespace graceful_fast {

// Rows of both logits, and what the definition of their distance depends on.
struct DistillRows {
  Matrix new_logits;          // (B, columns): classes first_class, first_class + 1, ... of each row
  Matrix old_logits;          // (B, old columns); without a map column j is of the same class as the new column j
  const int64_t* new_column;  // [pairs] ascending: columns that are one class; null: the first columns of both
  const int64_t* old_column;  // [pairs]
  int64_t pairs;              // without a map at most either's columns
  const int64_t* target;      // [B] a class of the whole row, or ignore_index
  int64_t first_class, ignore_index;
  DivergenceKind kind;
  double temperature;   // of kl
  double margin;        // of ldi; 0 for logits
  bool exclude_target;  // ldi: the target's class has no distance
};

struct DistillAccumulate {
  DistillRows rows;
  bool with_total;  // whether RowPart::total is wanted
  double* parts;    // [B, kRowPart] in/out: the part of these classes is merged into it; ignored rows stay
};

struct DistillBackward {
  DistillRows rows;
  const double* statistics;         // [B, kRowStatistics]
  const void* grad_output;          // float32 or float64, as the loss: one number or [B]
  int64_t grad_output_stride;       // elements; 0 for one number
  void* gradient;                   // [B, columns] out, of the new logits' type; may be the new logits themselves
  int64_t gradient_stride;          // elements
  bool past_caches;                 // the gradient is too large to be found in a cache by whoever reads it
  double label_smoothing, classes;  // classes of the whole row
};

// What a row is computed in: float64 logits of either model must not be rounded before they are compared or subtracted.
inline bool computes_in_float64(const DistillRows& rows) {
  return rows.new_logits.type == Element::float64 || rows.old_logits.type == Element::float64;
}

struct DistillKernels {
  void (*accumulate)(const DistillAccumulate&, int64_t begin, int64_t end);  // rows begin..end-1
  void (*backward)(const DistillBackward&, int64_t begin, int64_t end);
};

GF_DECLARE_TABLE(DistillKernels, distill)

}  // namespace graceful_fast
