// scan, the ending `count`: how many rows rank before each positive of a query, without sorting anything.
//
// A query's positives are sorted by their float64 keys. A scan score that lies above or below every positive by more
// than the error bound is counted between two of them; the few others are settled in float64.
#pragma once
#include "cpu/scan.h"

namespace graceful_fast {

struct CountParams : ScanParams {
  const int64_t* start;           // [Q + 1] where each query's positives start
  const int64_t* positives;       // [P] gallery rows, ascending within a query
  const int64_t* excluded_start;  // [Q + 1]
  const int64_t* excluded;        // gallery rows that do not count
  double* keys;                   // [P] of each query's positives, best first
  int64_t* rows;                  // [P] their gallery rows, ascending among equal keys
  int64_t* places;                // [P] where each stands in `positives`
  int64_t* tallies;               // [gallery_parts, 3 P + Q] zeros at first: Tally of each query
  int64_t* counts;  // [3, P] out, in the order of `positives`: greater keys; equal ones, its own included;
                    // equal ones at a smaller row
};

struct CountKernels {
  void (*sort)(const CountParams&, int64_t begin, int64_t end);  // of queries: keys, rows, places
  void (*count)(const CountParams&, int64_t task, ScanReport&);
  void (*finish)(const CountParams&, int64_t begin, int64_t end);  // of queries: tallies -> counts
};

GF_DECLARE_TABLE(CountKernels, scan_count)

}  // namespace graceful_fast
