// scan, the ending `count`: how many rows rank before each positive of a query, without sorting anything.
//
// A query's positives come sorted by their float64 keys. A scan score that lies above or below every positive by more
// than the error bound is counted between two of them; the few others are settled in float64.
#pragma once
#include "cpu/scan.h"

namespace graceful_fast {

struct CountParams : ScanParams {
  int64_t first_row;     // number of the gallery's first row
  const int64_t* start;  // [Q + 1] where each query's positives start
  const double* keys;    // [P] of each query's positives, best first
  const int64_t* rows;   // [P] their row numbers, ascending among equal keys; the gallery at hand may not have them
  int64_t* tallies;      // [gallery_parts, 3 P + Q] zeros at first: Tally of each query
};

struct CountKernels {
  void (*count)(const CountParams&, int64_t task, ScanReport&);
};

GF_DECLARE_TABLE(CountKernels, scan_count)

}  // namespace graceful_fast
