// scan: what stands between the bindings and the kernels. Queries are rows of `wide` in float64 and of codes; the
// gallery is rows of any floating type and of codes, made a chunk at a time or given.
#pragma once
#include <cstdint>

#include "math/matrix.h"
#include "math/scan_units.h"

namespace graceful_fast {

// --- rows before their products (scan_rows.cuh)
// -----------------------------------------------------------------------

enum class Coding : int32_t { int8, float16 };

// Bytes of a row as codes: a multiple of 16.
GF_HD inline int64_t operand_stride(Coding kind, int64_t dim) {
  return kind == Coding::int8 ? code_stride(dim) : code_stride(2 * dim);
}

struct MeasureParams {
  Matrix rows;
  Metric metric;
  double* squared;            // [rows] out
  double* wide;               // [rows, wide_stride] out, zeros at the end, or null
  int64_t wide_stride;        // a multiple of 8
  unsigned long long* fault;  // [1] in: all ones; out: 4 * the first bad row + its fault; or null
};

struct EncodeParams {
  Matrix rows;  // row i of what is made is row first + i * step
  int64_t first, step, count;
  Coding kind;
  const double* squared;  // [rows]
  void* codes;            // [count, stride] out
  int64_t stride;         // operand_stride
  float* facts;           // [count, kFacts] out, as of the CPU's codes; a norm of infinity: float64 must settle
};

struct Units {
  double gallery_scale, query_scale;  // powers of two; query_scale: l2 only, the same
};

struct UnitsParams {
  Metric metric;
  const double* query_squared;  // [Q]
  int64_t queries;
  const double* squared;  // [rows] or null:
  const float* facts;     // [rows, kFacts] of given codes
  int64_t rows;
  Units* units;  // [1] out
};

struct QueryFacts {
  float step, coded, shared, rest;
};
struct RowFacts {
  float scale, residual, norm, start;
};

struct QueryFactsParams {
  Metric metric;
  Coding kind;
  int64_t dim, queries;
  const Units* units;     // [1]
  const double* squared;  // [Q]
  const float* facts;     // [Q, kFacts] of the queries' codes
  QueryFacts* out;        // [Q]
  Query* out_queries;     // [Q] for key_in_scan
};

struct RowFactsParams {
  Metric metric;
  const Units* units;  // [1]
  const float* facts;  // [count, kFacts] of the rows' codes
  int64_t count;
  RowFacts* out;              // [count]
  unsigned long long* fault;  // as MeasureParams: codes of a zero vector have no cosine
};

// --- the tile (scan_tile.cuh)
// -------------------------------------------------------------------------------------------

struct Operand {
  const void* data;  // 16-byte aligned
  int64_t rows;
  int64_t pitch;  // bytes from row to row, a multiple of 16
};

struct TileParams {
  Coding kind;
  Operand queries, rows;          // codes
  int64_t bytes;                  // of each row: operand_stride
  const QueryFacts* query_facts;  // [Q]
  const RowFacts* row_facts;      // [rows], of row_step rows one
  int64_t row_step;
  float square;  // what an error takes of the square of a row's norm
};

// What bound.h's error has besides the products' own, of the square of a row's norm.
inline float square_factor(int64_t dim, Metric metric) {
  return rounded_up(squares_slack(metric) + Bound(dim, false, false).exact);
}

// --- the ending `collect` (scan_collect.cuh)
// ------------------------------------------------------------------------------

union Listed {
  struct {
    float score, error;  // scan units
  } scan;
  double key;  // once settled: the definition, for l2 negated; larger is better
};

struct Candidate {
  Listed as;
  int64_t row;  // of the gallery at hand
};

// A query's candidates: [Q, capacity + k], the last k for the best so far while they are settled.
struct Lists {
  Candidate* candidates;
  int64_t capacity, k;
  GF_HD Candidate* of(int64_t query) const { return candidates + query * (capacity + k); }
};

struct CollectParams {
  const float* limit;  // [Q] scores that end below it do not matter; infinity: the query takes no part
  int64_t queries;
  Lists lists;
  int32_t* counts;                               // [Q] may exceed the capacity
  int64_t first, step;                           // row of slot j: first + j * step
  const int64_t *query_ids, *gallery_ids;        // [Q], [N] or both null
  const int64_t *query_groups, *gallery_groups;  // [Q], [N] or both null
};

// What each query's list has come to.
struct ListStates {
  double* floor;     // [Q]
  float* limit;      // [Q] the floor as the tile takes it
  int32_t* counts;   // [Q] candidates, also those without room
  int32_t* kept;     // [Q] candidates before the launch
  uint8_t* pending;  // [Q] has to see the rows of the launch again
};

enum class Pass : int32_t {
  seeds,  // candidates only raise floors
  first,  // of all queries; whose list is too small is pending
  again,  // of pending queries, the same rows: a better floor may have made them few enough
  piece,  // of pending queries, a part of the rows that any list has room for
};

struct TrimParams {
  Lists lists;
  ListStates states;
  int64_t queries;
  Pass pass;
  int64_t most;     // a list that stays longer is to be settled
  int32_t* totals;  // [2] in: zeros; out: queries whose list was too small, and those to be settled
};

struct LimitParams {
  ListStates states;
  int64_t queries;
  bool pending;  // only pending queries take part
};

// --- float64 (scan_settle.cuh)
// --------------------------------------------------------------------------------------------

struct DefinitionParams {
  Matrix rows;         // of the gallery
  const double* wide;  // [Q, wide_stride] queries in float64, zeros at the end
  int64_t wide_stride;
  const double* square;  // [Q] q.q
  Metric metric;
};

struct SettleParams {
  DefinitionParams definition;
  Lists lists;
  ListStates states;
  int64_t queries;
  const Query* facts;           // [Q]
  int64_t above;                // lists longer than this,
  bool pending;                 // and of pending queries: also shorter ones
  int64_t first_row;            // number of the gallery's first row,
  const int64_t* numbers;       // [N] or null: of each
  double* keys;                 // [Q, k] in and out: the best so far, best first
  int64_t* rows;                // [Q, k] -1 where there is none
  unsigned long long* settled;  // [2] added to: candidates, lists
};

// Lists of given length: places[offsets[i]] to places[offsets[i + 1]] of query i.
struct PlaceParams {
  Lists lists;
  ListStates states;
  int64_t queries;
  const int64_t *offsets, *places;
};

// And back: the rows of all lists, one after the other.
struct ListRowsParams {
  Lists lists;
  const int64_t* offsets;  // [Q + 1]
  int64_t queries;
  int64_t* rows;
};

// --- pairs that a scan score cannot decide (scan_settle.cuh)
// -----------------------------------------------------------

struct Pair {
  int64_t query, row;
};

struct Unsure {
  Pair* pairs;  // [capacity]
  int64_t capacity;
  unsigned long long* count;  // [1] also of those without room
  bool only;                  // what is sure has been counted before
};

// --- the ending `count` (scan_count.cuh): how many rows rank before each of a query's positives, sorted by key
// --------

struct CountParams {
  const int64_t* start;  // [Q + 1] where each query's positives start
  const double* keys;    // [P] best first
  const int64_t* rows;   // [P] their row numbers, ascending among equal keys
  float *upper, *lower;  // [P] a score above the first surely beats the positive, one below the second surely does not
  unsigned long long* between;  // [P + Q] rows worse than the positive before this place, better than the one at it
  unsigned long long* equal;    // [P] rows as good as the positive at this place, the first of its key
  unsigned long long* before;   // [P] of those: the next row among the positives of this key is the one at this place
  int64_t first_query;          // of the launch
  int64_t first;                // row of slot 0
  int64_t first_row;            // number of the gallery's first row
  Unsure unsure;
};

struct CountAllParams {
  CountParams count;
  int64_t queries, positives;
  const Query* facts;  // [Q]
  Metric metric;
  int64_t* counts;  // [3, P] added to: greater keys, equal ones, equal ones at a smaller row
};

// --- the endings over all pairs (scan_pairs.cuh)
// ------------------------------------------------------------------------

struct PairParams {
  const int32_t *query_labels, *row_labels;  // [Q], [N]: a pair of one label is genuine
  const int32_t *query_ids, *row_ids;        // [Q], [N] or both null: a pair of one id is left out
  bool within;                               // both sides are one set: only rows after the query
  int64_t first_query, first;                // of the launch; row of slot 0
  int64_t queries;                           // of the launch
  int64_t bins;
  unsigned long long* counts;  // [2, bins] impostors, genuine pairs
  uint8_t* kinds;              // [capacity] out, of kept pairs: 1 genuine, 0 impostor
  int64_t capacity;
  unsigned long long* kept;  // [1] how many there are, also beyond the capacity
};

struct Line {
  float slope, offset;  // bin of a score, before it is rounded down
};

struct HistogramParams {
  PairParams pairs;
  int64_t rows;  // of the gallery
  Metric metric;
  double origin, width;   // of the bins; the first and the last take what lies beyond
  const Query* facts;     // [Q]
  Line* lines;            // [Q]
  float* places;          // [capacity] out, of kept pairs: (scan score - origin) / width, the bin if rounded down
  int64_t* numbers;       // [capacity] out: query * rows + row
  const int64_t* ranges;  // [range_count, 2] first and last bin, disjoint: their pairs are kept
  int64_t range_count;
  uint32_t* margin;  // [1] in: 0; out, as float32: how far a pair's place may be from that of its key
};

struct Limits {
  float low, high;
};

struct BetweenParams {
  PairParams pairs;
  Metric metric;
  const Query* facts;  // [Q]
  Limits* limits;      // [Q] scores below the first are surely below the bins between, above the second above them
  double* keys;        // [capacity] out, of the pairs between the first bin and the last
  int64_t lowest;      // ordered(key) of the first value of bin 1; the last bin takes what lies above the others
  int64_t shift;       // a bin has 2^shift values
  Unsure unsure;
};

struct PairKeysParams {
  DefinitionParams definition;
  int64_t queries, count;
  const int64_t *rows, *columns;  // [count] of a, of b
  double* keys;                   // [count] out
  unsigned long long* fault;      // [1] in: all ones; out: the first pair that is none
};

void launch_scan_measure(const MeasureParams& params, void* stream);
void launch_scan_encode(const EncodeParams& params, void* stream);
void launch_scan_units(const UnitsParams& params, void* stream);
void launch_scan_query_facts(const QueryFactsParams& params, void* stream);
void launch_scan_row_facts(const RowFactsParams& params, void* stream);
void launch_scan_collect(const TileParams& params, const CollectParams& ending, void* stream);
void launch_scan_trim(const TrimParams& params, void* stream);
void launch_scan_limits(const LimitParams& params, void* stream);
void launch_scan_begin(const SettleParams& params, void* stream);
void launch_scan_settle(const SettleParams& params, void* stream);  // keys, then rank
void launch_scan_place(const PlaceParams& params, void* stream);
void launch_scan_list_rows(const ListRowsParams& params, void* stream);
void launch_scan_edges(const CountAllParams& params, void* stream);
void launch_scan_count(const TileParams& params, const CountParams& ending, void* stream);
void launch_scan_count_unsure(const DefinitionParams& definition, const CountParams& params, int64_t pairs,
                              void* stream);
void launch_scan_count_add(const CountAllParams& params, void* stream);
void launch_scan_lines(const HistogramParams& params, void* stream);
void launch_scan_histogram(const TileParams& params, const HistogramParams& ending, void* stream);
void launch_scan_between_limits(const BetweenParams& params, void* stream);
void launch_scan_between(const TileParams& params, const BetweenParams& ending, void* stream);
void launch_scan_between_unsure(const DefinitionParams& definition, const BetweenParams& params, int64_t pairs,
                                void* stream);
void launch_scan_pair_keys(const PairKeysParams& params, void* stream);

}  // namespace graceful_fast
