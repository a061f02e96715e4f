// scan: queries x gallery in one tiled pass over the gallery; an ending consumes the scores, which are never stored.
// Ending `collect`: the k best rows of each query, exactly (math/settle.h says what "exactly" means).
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "math/matrix.h"
#include "math/scan_units.h"

namespace graceful_fast {

// Rows as codes of 8 bits: row = scale * code + a rest of norm at most `residual`; see cpu/scan_codes.h.
struct Codes {
  const int8_t* data;  // [N, stride], zeros from dim on; null: none
  int64_t stride;      // code_stride(dim)
  const float* facts;  // [N, kFacts]: scale, residual, norm, the latter two rounded up; infinity: float64 must settle
};

// What every ending's scan needs.
struct ScanParams {
  Matrix queries, gallery;  // (Q, dim), (N, dim)
  int64_t dim;
  Metric metric;
  bool coded;                          // scan codes of 8 bits: the given ones, else made of each chunk of rows
  Codes codes;                         // of the gallery, made before
  int64_t query_parts, gallery_parts;  // the grid of tasks
  double gallery_scale, query_scale;   // powers of two that bring typical norms near 1; query_scale: l2 only, the same
};

struct Candidate {
  float low, high;  // scan units: its score by definition lies between them
  int64_t row;
};

struct CollectParams : ScanParams {
  int64_t k;                                     // may exceed N: the gallery may be a block of a larger one
  int64_t first_row;                             // number of the gallery's first row
  const int64_t *query_ids, *gallery_ids;        // [Q], [N] or both null: a query never finds a row of its own id
  const int64_t *query_groups, *gallery_groups;  // [Q], [N] or both null: nor a row of its own group
  bool deferred;           // only codes are at hand: nothing can be settled yet, a buffer that stays full ends the scan
  double* floor;           // [Q] in: -inf; a lower bound of each k-th best score in scan units, shared by the tasks
  int64_t capacity;        // candidates that a task holds of a query: above k
  Candidate* candidates;   // [Q, gallery_parts, capacity]
  int64_t* counts;         // [Q, gallery_parts]
  double* keys;            // [Q, k] in and out: float64 scores of the best so far, larger is better, best first
  int64_t* rows;           // [Q, k] -1 where there is none
  const int64_t* numbers;  // [N] or null: rows are first_row, first_row + 1, ...
};

struct ScanReport {              // what one task found
  int64_t query = -1, row = -1;  // first bad query, first bad gallery row
  Fault query_fault = Fault::none, row_fault = Fault::none;
  int64_t settled = 0;     // float64 scores computed
  int64_t cuts = 0;        // times a full buffer of candidates was settled and cut
  int64_t coded_rows = 0;  // rows scanned as codes,
  int64_t plain_rows = 0;  // and rows scanned in float32
  bool overflow = false;   // of a deferred scan
};

struct ScanKernels {
  double (*typical_scale)(const Matrix&, int64_t dim);  // a power of two near 1/norm of the larger of some sampled rows
  double (*typical_scale_of_codes)(const Codes&, int64_t rows);
  void (*collect)(const CollectParams&, int64_t task, ScanReport&);
  // Drops candidates by what all parts have found together; those that stay are one list, that of part 0.
  void (*trim)(const CollectParams&, int64_t query);
  void (*settle)(const CollectParams&, int64_t query_begin, int64_t query_end,
                 ScanReport&);  // candidates -> keys, rows
  // Codes and facts of rows begin .. end-1 of a matrix; the first bad row or -1.
  int64_t (*quantize)(const Matrix&, int64_t begin, int64_t end, int8_t* codes, float* facts, Fault&);
};

GF_DECLARE_TABLE(ScanKernels, scan)

}  // namespace graceful_fast
