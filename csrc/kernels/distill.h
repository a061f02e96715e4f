// distill: what stands between the binding and the kernels.
#pragma once
#include <cstdint>

#include "math/matrix.h"
#include "math/row_statistics.h"

namespace graceful_fast {

// Rows of both logits, and what the definition of their distance depends on.
struct DistillLogits {
  Matrix new_logits;          // (B, columns): classes first_class, first_class + 1, ... of each row
  Matrix old_logits;          // (B, old columns)
  const int64_t* old_column;  // [columns] of each new column, -1: none; null: the same one, for the first `shared`
  int64_t shared;
  const int64_t* target;  // [B] a class of the whole row, or ignore_index; any other makes the row NaN
  int64_t first_class, ignore_index;
  DivergenceKind kind;
  double temperature;   // of kl
  double margin;        // of ldi; 0 for logits
  bool exclude_target;  // ldi: the target's class has no distance
};

struct DistillParts {
  DistillLogits logits;
  bool with_total;  // whether RowPart::total is wanted
  int64_t splits;   // parts of a row: each is of as many tiles
  double* parts;    // [splits, B, kRowPart] out; an ignored row's are those of no class
};

struct DistillMerge {
  const double* parts;  // [shards, B, kRowPart] of disjoint classes
  int64_t shards, rows;
  const double* before;  // [B, kRowPart] of yet other classes, or null
  double temperature;
};

enum class Reduction : int64_t { mean, sum, none };

// The loss of whole rows.
struct DistillFinish {
  DistillMerge merge;
  LossRule rule;
  const int64_t* target;  // [B]
  const double* weight;   // [B] if the focus is by weight
  int64_t ignore_index;
  Reduction reduction;
  bool wide;           // the loss is float64, else float32
  double* statistics;  // [B, kRowStatistics] out
  double* losses;      // [B] out, unless the reduction is none
  void* loss;          // [B] or one number, out
};

struct DistillBackward {
  DistillLogits logits;
  const double* statistics;         // [B, kRowStatistics]
  const void* grad_output;          // float32 or, for float64 new logits, float64: one number or [B]
  int64_t grad_output_stride;       // elements; 0 for one number
  void* gradient;                   // [B, columns] out, of the new logits' type; may be the new logits themselves
  int64_t gradient_stride;          // elements
  double label_smoothing, classes;  // classes of the whole row
};

// A row's classes go to as many warps as make this many of them at work: eight on each processor of the largest GPUs. A
// constant, not the number of this GPU's processors: the order of the sums, and so their last bit, is the same on all.
#ifdef GF_SIMT
inline int64_t distill_warps = 2048;  // so that tests see rows that are not split
#else
constexpr int64_t distill_warps = 2048;
#endif

int64_t distill_tile(const DistillLogits& logits);  // classes that a warp holds at a time
void launch_distill_parts(const DistillParts& params, void* stream);
void launch_distill_merge(const DistillMerge& params, double* merged, void* stream);  // merged: [B, kRowPart] out
void launch_distill_finish(const DistillFinish& params, void* stream);
void launch_distill_backward(const DistillBackward& params, void* stream);
// new_column ascending, old_column: [pairs] columns that are one class -> [columns] as DistillLogits::old_column.
void launch_distill_columns(const int64_t* new_column, const int64_t* old_column, int64_t pairs, int64_t columns,
                            int64_t* out, void* stream);

}  // namespace graceful_fast
