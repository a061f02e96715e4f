// What threads do together: barriers, shuffles, votes, reductions, ldmatrix, mma. Each call carries its place in the
// source by a default argument.
#pragma once
#include <bit>
#include <source_location>

#include "types.h"

namespace simt::host {

using Site = std::source_location;

enum class Shuffle { index, up, down, exclusive_or };
enum class Reduce { add, min_signed, max_signed, min_unsigned, max_unsigned, bit_and, bit_or, bit_xor };
enum class Vote { ballot, any, all };
enum class Barrier { plain, any, all, count };
enum class Mma { bf16, f16, tf32, s8 };

int barrier(Barrier kind, bool predicate, Site site);
void sync_warp(unsigned mask, Site site);
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, unsigned lane, int width, Site site);
unsigned vote(Vote kind, unsigned mask, bool predicate, Site site);
unsigned reduce(Reduce kind, unsigned mask, unsigned value, Site site);
void load_matrices(uint32_t* r, int count, bool transposed, const void* shared, Site site);
void multiply(Mma kind, void* d, const uint32_t* a, const uint32_t* b, Site site);

template <typename T>
T shuffle_as(Shuffle kind, unsigned mask, T value, unsigned lane, int width, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
  if constexpr (sizeof(T) == 4) {
    return std::bit_cast<T>(uint32_t(shuffle(kind, mask, std::bit_cast<uint32_t>(value), lane, width, site)));
  } else {
    return std::bit_cast<T>(shuffle(kind, mask, std::bit_cast<uint64_t>(value), lane, width, site));
  }
}

}  // namespace simt::host

// Not reserved for us, but CUDA's names: that is the point of them.
inline void __syncthreads(simt::host::Site site = simt::host::Site::current()) {
  simt::host::barrier(simt::host::Barrier::plain, false, site);
}
inline int __syncthreads_or(int predicate, simt::host::Site site = simt::host::Site::current()) {
  return simt::host::barrier(simt::host::Barrier::any, predicate != 0, site);
}
inline int __syncthreads_and(int predicate, simt::host::Site site = simt::host::Site::current()) {
  return simt::host::barrier(simt::host::Barrier::all, predicate != 0, site);
}
inline int __syncthreads_count(int predicate, simt::host::Site site = simt::host::Site::current()) {
  return simt::host::barrier(simt::host::Barrier::count, predicate != 0, site);
}
inline void __syncwarp(unsigned mask = 0xffffffff, simt::host::Site site = simt::host::Site::current()) {
  simt::host::sync_warp(mask, site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, simt::host::Site site = simt::host::Site::current()) {
  return simt::host::shuffle_as(simt::host::Shuffle::index, mask, value, unsigned(lane), width, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::host::Site site = simt::host::Site::current()) {
  return simt::host::shuffle_as(simt::host::Shuffle::up, mask, value, delta, width, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::host::Site site = simt::host::Site::current()) {
  return simt::host::shuffle_as(simt::host::Shuffle::down, mask, value, delta, width, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  simt::host::Site site = simt::host::Site::current()) {
  return simt::host::shuffle_as(simt::host::Shuffle::exclusive_or, mask, value, unsigned(lanes), width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::host::Site site = simt::host::Site::current()) {
  return simt::host::vote(simt::host::Vote::ballot, mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, simt::host::Site site = simt::host::Site::current()) {
  return int(simt::host::vote(simt::host::Vote::any, mask, predicate != 0, site));
}
inline int __all_sync(unsigned mask, int predicate, simt::host::Site site = simt::host::Site::current()) {
  return int(simt::host::vote(simt::host::Vote::all, mask, predicate != 0, site));
}

#define SIMT_REDUCE(name, T, kind)                                                             \
  inline T name(unsigned mask, T value, simt::host::Site site = simt::host::Site::current()) { \
    return T(simt::host::reduce(simt::host::Reduce::kind, mask, unsigned(value), site));       \
  }
SIMT_REDUCE(__reduce_add_sync, int, add)
SIMT_REDUCE(__reduce_add_sync, unsigned, add)
SIMT_REDUCE(__reduce_min_sync, int, min_signed)
SIMT_REDUCE(__reduce_min_sync, unsigned, min_unsigned)
SIMT_REDUCE(__reduce_max_sync, int, max_signed)
SIMT_REDUCE(__reduce_max_sync, unsigned, max_unsigned)
SIMT_REDUCE(__reduce_and_sync, unsigned, bit_and)
SIMT_REDUCE(__reduce_or_sync, unsigned, bit_or)
SIMT_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef SIMT_REDUCE

namespace simt {

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared, host::Site site = host::Site::current()) {
  host::load_matrices(r, 4, false, shared, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared, host::Site site = host::Site::current()) {
  host::load_matrices(r, 2, false, shared, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared, host::Site site = host::Site::current()) {
  host::load_matrices(r, 4, true, shared, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared, host::Site site = host::Site::current()) {
  host::load_matrices(r, 2, true, shared, site);
}

using Fragment4 = const uint32_t (&)[4];
using Fragment2 = const uint32_t (&)[2];
inline void mma_16816_bf16(float (&d)[4], Fragment4 a, Fragment2 b, host::Site site = host::Site::current()) {
  host::multiply(host::Mma::bf16, d, a, b, site);
}
inline void mma_16816_f16(float (&d)[4], Fragment4 a, Fragment2 b, host::Site site = host::Site::current()) {
  host::multiply(host::Mma::f16, d, a, b, site);
}
inline void mma_1688_tf32(float (&d)[4], Fragment4 a, Fragment2 b, host::Site site = host::Site::current()) {
  host::multiply(host::Mma::tf32, d, a, b, site);
}
inline void mma_16832_s8(int32_t (&d)[4], Fragment4 a, Fragment2 b, host::Site site = host::Site::current()) {
  host::multiply(host::Mma::s8, d, a, b, site);
}

}  // namespace simt
