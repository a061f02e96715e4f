// scan, the tile: queries x rows of a gallery on tensor cores; an ending consumes the scores, which are never stored.
//
// Query i is t b + f and row j is s c + e in scan units, b and c codes of 8 bits or float16 (scan_rows.cuh). Their
// score is t s <b, c> + start, within `error` of the definition's score in those units:
//   error = coded_i residual_j + shared_i norm_j + rest_i + square |norm_j|^2          (scan_rows.cuh has the factors)
// A block makes the scores of 128 queries with 128 rows and hands each to the ending, a template parameter by value:
//   bool skips(query, row)         the same for all threads of a block: nothing is wanted of queries from `query` on,
//   up
//                                  to kTileRows of them, with as many rows from `row` on
//   auto query(i)                  what `take` needs of query i
//   void take(of_query, i, slot, there, score, error)    of every pair once, in no order, by all 32 lanes of a warp
//                                  together: one query, 32 rows one after the other, those that are `there`; of
//                                  infinite error: nothing is known of the score
//   void finish()                  by all threads, after the last of a block's scores
// An ending is copied into every thread, so its fields may be a thread's own sums.
// The rows of a launch are slots 0, 1, ...; which rows of the gallery they are the ending knows.
//
// Global memory: each block reads 128 rows of both operands and 16 bytes more of each.
#pragma once
#include "kernels/mma.cuh"

namespace graceful_fast {
namespace {

constexpr int kTileHalf = kWarpRowsA / 2;
static_assert(kTileThreads / 32 * kTileHalf * kPitch * 4 <= kStages * kStageBytes);
constexpr size_t kTileShared = kStages * kStageBytes + kTileRows * (sizeof(QueryFacts) + sizeof(RowFacts));

template <class Sum, class Ending>
__global__ void __launch_bounds__(kTileThreads, 2) scan_tile(TileParams p, Ending ending) {
  const int64_t query0 = int64_t(blockIdx.x) * kTileRows, slot0 = int64_t(blockIdx.y) * kTileRows;
  if (ending.skips(query0, slot0)) return;
  simt::Smem smem;
  uint8_t* const stages = smem.take<uint8_t>(kStages * kStageBytes);
  QueryFacts* const query_facts = smem.take<QueryFacts>(kTileRows);
  RowFacts* const row_facts = smem.take<RowFacts>(kTileRows);

  // 1. what is known of this tile's queries and rows
  const int side = int(threadIdx.x) % kTileRows;
  if (threadIdx.x < kTileRows) {
    if (query0 + side < p.queries.rows) query_facts[side] = p.query_facts[query0 + side];
  } else {
    if (slot0 + side < p.rows.rows) row_facts[side] = p.row_facts[(slot0 + side) * p.row_step];
  }

  // 2. products
  Products<Sum> products;
  products.compute(p.queries, query0, p.rows, slot0, p.bytes, stages);
  __syncthreads();  // no warp reads the stages any more: products go there

  // 3. scores, a row of the gallery a lane
  Sum* const sums = reinterpret_cast<Sum*>(stages) + threadIdx.x / 32 * (kTileHalf * kPitch);
  const int lane = threadIdx.x % 32, column = Products<Sum>::b_row() + lane;
  const int64_t slot = slot0 + column;
  const bool there = slot < p.rows.rows;
  const RowFacts x = there ? row_facts[column] : RowFacts{};
  const float of_square = p.square * x.norm * x.norm;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    products.store(half, sums);
    __syncwarp();  // lanes read what others have stored
    const int begin = Products<Sum>::a_row() + half * kTileHalf;
    for (int r = 0; r < kTileHalf && query0 + begin + r < p.queries.rows; ++r) {
      const QueryFacts q = query_facts[begin + r];
      const int64_t i = query0 + begin + r;
      const float score = fmaf(float(sums[r * kPitch + lane]) * x.scale, q.step, x.start);
      const float error = fmaf(q.coded, x.residual, fmaf(q.shared, x.norm, of_square + q.rest));
      ending.take(ending.query(i), i, slot, there, score, error);
    }
    __syncwarp();  // the other half goes to the same place
  }
  ending.finish();
}

#ifndef __CUDACC_RTC__  // which compiles what runs on the device alone
// One launch over all queries and rows.
template <class Ending>
void launch_tile(const char* name, const TileParams& p, const Ending& ending, simt::Stream stream) {
  const auto tiles = [](int64_t rows) { return unsigned((rows + kTileRows - 1) / kTileRows); };
  const auto launch = [&](auto kernel) {
    simt::launch(name, kernel, dim3(tiles(p.queries.rows), tiles(p.rows.rows)), dim3(kTileThreads), kTileShared, stream,
                 p, ending);
  };
  p.kind == Coding::int8 ? launch(scan_tile<int32_t, Ending>) : launch(scan_tile<float, Ending>);
}
#endif

}  // namespace
}  // namespace graceful_fast
