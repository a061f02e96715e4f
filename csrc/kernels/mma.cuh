// All products of 128 rows of one operand with 128 of another, on tensor cores: codes of 8 bits or float16.
//
// Rows lie along the sum's index, of both operands alike, so that both kinds are read the same way, by bytes: a step of
// the tensor cores takes 32 bytes of a row, 32 codes or 16 halves. 256 threads, 2 x 4 warps of 64 x 32 products each.
// Slices of 64 bytes of all 256 rows pass through shared memory, kStages of them under way; bytes beyond a row's end
// and rows beyond the last are zeros. The pieces of 16 bytes of a row are swapped about, so that the eight rows that a
// matrix is read from lie in different banks.
//
// Global memory is read once a block: 256 rows of `bytes` bytes.
#pragma once
#include "kernels/scan.h"
#include "kernels/simt.cuh"

namespace graceful_fast {
namespace {

constexpr int kTileRows = 128, kTileThreads = 256;
constexpr int kSliceBytes = 64, kPieces = kSliceBytes / 16, kStepBytes = 32;
constexpr int kStages = 4;  // 64 KiB: two blocks an SM
constexpr int kStageBytes = 2 * kTileRows * kSliceBytes;
constexpr int kWarpRowsA = 64, kWarpRowsB = 32;
constexpr int kPitch = kWarpRowsB + 8;  // products that are stored together lie in different banks

// Where in its slice a piece of 16 bytes of a row lies.
__device__ __forceinline__ int piece_at(int row, int piece) {
  return row * kSliceBytes + (piece ^ (row >> 1 & (kPieces - 1))) * 16;
}

__device__ __forceinline__ void multiply_add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma_16832_s8(d, a, b);
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma_16816_f16(d, a, b);
}

// One thread's part of the products, Sum int32_t of codes or float of halves.
template <class Sum>
struct Products {
  Sum at[4][4][4];

  // This warp's products are those of 64 rows of a, from here on, with 32 of b.
  __device__ static int a_row() { return warp() / 4 * kWarpRowsA; }
  __device__ static int b_row() { return warp() % 4 * kWarpRowsB; }

  // Writes half of this warp's, its rows 32 * half to 32 * half + 31 of a, to `to`: row after row, kPitch apart.
  __device__ void store(int half, Sum* to) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          to[(m * 16 + i / 2 * 8 + lane() / 4) * kPitch + n * 8 + lane() % 4 * 2 + i % 2] = at[half * 2 + m][n][i];
      }
    }
  }

  // Of the rows from a_begin and b_begin on, of `bytes` bytes, a multiple of 16. stages: kStages * kStageBytes of
  // shared memory.
  __device__ void compute(const Operand& a, int64_t a_begin, const Operand& b, int64_t b_begin, int64_t bytes,
                          uint8_t* stages) {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) at[m][n][i] = 0;
    const int slices = int((bytes + kSliceBytes - 1) / kSliceBytes);
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < slices) load(a, a_begin, b, b_begin, bytes, s, stages + s * kStageBytes);
      simt::cp_async_commit();
    }
    for (int s = 0; s < slices; ++s) {
      simt::cp_async_wait<kStages - 2>();
      __syncthreads();  // all have their parts of slice s, and none reads slice s - 1, whose place is filled next
      const int next = s + kStages - 1;
      if (next < slices) load(a, a_begin, b, b_begin, bytes, next, stages + next % kStages * kStageBytes);
      simt::cp_async_commit();
      add_slice(stages + s % kStages * kStageBytes);
    }
    simt::cp_async_wait<0>();
  }

 private:
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ static int lane() { return int(threadIdx.x) % 32; }

  __device__ static void load(const Operand& a, int64_t a_begin, const Operand& b, int64_t b_begin, int64_t bytes,
                              int slice, uint8_t* stage) {
    const int piece = int(threadIdx.x) % kPieces;
    const int64_t byte = int64_t(slice) * kSliceBytes + piece * 16;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const Operand& from = side ? b : a;
      const int64_t begin = side ? b_begin : a_begin;
#pragma unroll
      for (int i = 0; i < kTileRows / (kTileThreads / kPieces); ++i) {
        const int row = int(threadIdx.x) / kPieces + i * (kTileThreads / kPieces);
        const bool there = begin + row < from.rows && byte < bytes;
        const int64_t at = there ? (begin + row) * from.pitch + byte : 0;
        simt::cp_async_16(stage + side * kTileRows * kSliceBytes + piece_at(row, piece),
                          static_cast<const uint8_t*>(from.data) + at, there ? 16 : 0);
      }
    }
  }

  __device__ void add_slice(const uint8_t* stage) {
    const uint8_t* const rows_a = stage;
    const uint8_t* const rows_b = stage + kTileRows * kSliceBytes;
    const int matrix = lane() / 8, line = lane() % 8;  // whose address this lane gives
#pragma unroll
    for (int step = 0; step < kSliceBytes / kStepBytes; ++step) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int row = a_row() + m * 16 + matrix % 2 * 8 + line;
        simt::ldmatrix_x4(a[m], rows_a + piece_at(row, step * 2 + matrix / 2));
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int row = b_row() + n * 16 + matrix / 2 * 8 + line;
        simt::ldmatrix_x4(b[n], rows_b + piece_at(row, step * 2 + matrix % 2));
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t two[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          multiply_add(at[m][n], a[m], two);
        }
      }
    }
  }
};

}  // namespace
}  // namespace graceful_fast
