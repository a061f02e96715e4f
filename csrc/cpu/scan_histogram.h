// scan, the endings `histogram` and `between`: the scores of all pairs of rows, counted by bins; exact ones of few
// bins.
#pragma once
#include "cpu/scan.h"

namespace graceful_fast {

// Queries are the rows of a, the gallery those of b.
struct PairParams : ScanParams {
  const int32_t *query_labels, *row_labels;  // [Q], [N + kPadding]: a pair of one label is genuine
  const int32_t *query_ids, *row_ids;        // the same, or both null: a pair of one id is left out
  bool within;                               // both sides are one set: only rows after the query
  int64_t bins;
  int64_t* counts;  // [2, bins] zeros at first: impostors, genuine pairs; shared by the tasks
  uint8_t* kinds;   // [capacity] out, of kept pairs: 1 genuine, 0 impostor
  int64_t capacity;
  int64_t* kept;  // how many there are, also beyond the capacity; shared by the tasks
};
constexpr int64_t kPadding = 64;  // a vector may reach beyond the last row

struct HistogramParams : PairParams {
  double origin, width;   // of the bins; the first and the last take what lies beyond
  float* places;          // [capacity] out, of kept pairs: (scan score - origin) / width, the bin if rounded down
  int64_t* pairs;         // [capacity] out: query * N + row
  const int64_t* ranges;  // [range_count, 2] first and last bin, disjoint: their pairs are kept
  int64_t range_count;
  double* margins;  // [tasks] out: how far a pair's place may be from that of its key
};

struct BetweenParams : PairParams {
  double* keys;    // [capacity] out, of the pairs between the first bin and the last
  int64_t lowest;  // ordered(key) of the first value of bin 1; the last bin takes what lies above the others
  int64_t shift;   // a bin has 2^shift values
};

struct HistogramKernels {
  void (*histogram)(const HistogramParams&, int64_t task, ScanReport&);
  void (*between)(const BetweenParams&, int64_t task, ScanReport&);
  // keys of pairs (rows[i], columns[i])
  void (*pairs)(const ScanParams&, const int64_t* rows, const int64_t* columns, int64_t count, double* keys);
};

GF_DECLARE_TABLE(HistogramKernels, scan_histogram)

}  // namespace graceful_fast
