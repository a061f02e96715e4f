// scan: queries x gallery in one tiled pass over the gallery; an ending consumes the scores, which are never stored.
// Ending `collect`: the k best rows of each query, exactly (math/settle.h says what "exactly" means).
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/matrix.h"

namespace graceful_fast {

enum class Metric { ip, l2, cosine };  // as numbered in graceful_fast/_ops.py
enum class Fault : int64_t { none, not_finite, zero, too_large };

struct CollectParams {
  Matrix queries, gallery;  // (Q, dim), (N, dim)
  int64_t dim, k;           // k <= N
  Metric metric;
  const int64_t *query_ids, *gallery_ids;        // [Q], [N] or both null: a query never finds a row of its own id
  const int64_t *query_groups, *gallery_groups;  // [Q], [N] or both null: nor a row of its own group
  int64_t query_parts, gallery_parts;            // the grid of tasks
  double gallery_scale, query_scale;  // powers of two that bring typical norms near 1; query_scale: l2 only, the same
  double* floor;                      // [Q] in: -inf; a lower bound of each k-th best score, shared by the tasks
  double* keys;                       // [Q, gallery_parts, k] out: float64 scores, larger is better
  int64_t* rows;                      // [Q, gallery_parts, k] out: gallery rows, -1 where there is none
};

struct CollectReport {           // what one task found
  int64_t query = -1, row = -1;  // first bad query, first bad gallery row
  Fault query_fault = Fault::none, row_fault = Fault::none;
  int64_t settled = 0;  // float64 scores computed
};

struct ScanKernels {
  double (*typical_scale)(const Matrix&, int64_t dim);  // a power of two near 1/norm of the larger of some sampled rows
  void (*collect)(const CollectParams&, int64_t task, CollectReport&);
  void (*merge)(const CollectParams&, int64_t query, float* scores, int64_t* indices);  // k of each: [k] out
};

GF_DECLARE_TABLE(ScanKernels, scan)

}  // namespace graceful_fast
