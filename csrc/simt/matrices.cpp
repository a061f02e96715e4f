// ldmatrix and mma with the fragment layouts of the PTX manual. With g = lane / 4 and t = lane % 4, lane by lane:
//   16-bit (K = 16): a0 = A[g][2t..], a1 = A[g+8][2t..], a2 = A[g][2t+8..], a3 = A[g+8][2t+8..], two elements each;
//                    b0 = B[2t..][g], b1 = B[2t+8..][g]
//   tf32 (K = 8):    a0 = A[g][t], a1 = A[g+8][t], a2 = A[g][t+4], a3 = A[g+8][t+4];  b0 = B[t][g], b1 = B[t+4][g]
//   s8 (K = 32):     a0 = A[g][4t..], a1 = A[g+8][4t..], a2 = A[g][4t+16..], a3 = A[g+8][4t+16..], four elements each;
//                    b0 = B[4t..][g], b1 = B[4t+16..][g]
//   d of all kinds:  d0 = D[g][2t], d1 = D[g][2t+1], d2 = D[g+8][2t], d3 = D[g+8][2t+1]
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "checks.h"
#include "math/half.h"
#include "meeting.h"
#include "shared.h"

namespace simt::host {

namespace {

struct MatrixRequest {
  uint32_t* r;
  int count;
  bool transposed;
  const std::byte* address;
};

void complete_load(Warp&, Meeting& meeting) {
  const auto request = [&](int lane) -> MatrixRequest& { return *static_cast<MatrixRequest*>(meeting.request[lane]); };
  for (int matrix = 0; matrix < request(0).count; ++matrix) {
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) std::memcpy(rows[row], request(8 * matrix + row).address, 16);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const bool across = request(0).transposed;
      const uint32_t low = across ? rows[2 * t][g] : rows[g][2 * t];
      const uint32_t high = across ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      request(lane).r[matrix] = high << 16 | low;
    }
  }
}

struct MmaRequest {
  void* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <Mma kind>
double element(uint32_t word, int part) {
  using namespace graceful_fast;
  if constexpr (kind == Mma::bf16) return widen(BFloat16{uint16_t(word >> 16 * part)});
  if constexpr (kind == Mma::f16) return widen(Half{uint16_t(word >> 16 * part)});
  if constexpr (kind == Mma::tf32) return std::bit_cast<float>(word & 0xffffe000);  // 10 bits of mantissa
  return int8_t(word >> 8 * part);
}

// d + x as float32 towards zero: the tensor cores cut off what they cannot keep. Error bounds that hold here hold
// there.
void add(float& d, double x) {
  const double exact = d + x;
  const auto nearest = float(exact);
  d = std::fabs(nearest) > std::fabs(exact) ? std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - 1) : nearest;
}
void add(int32_t& d, double x) { d = int32_t(uint32_t(d) + uint32_t(int32_t(x))); }

template <Mma kind>
void complete_mma(Warp&, Meeting& meeting) {
  using D = std::conditional_t<kind == Mma::s8, int32_t, float>;
  constexpr int packed = kind == Mma::s8 ? 4 : kind == Mma::tf32 ? 1 : 2;  // elements in a register
  constexpr int k = 8 * packed;
  const auto request = [&](int lane) -> MmaRequest& {
    return *static_cast<MmaRequest*>(meeting.request[size_t(lane)]);
  };
  double a[16][k], b[8][k];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < packed; ++part) {
      const int low = packed * t + part, high = low + k / 2;
      const auto* from = request(lane).a;
      a[g][low] = element<kind>(from[0], part);
      a[g + 8][low] = element<kind>(from[1], part);
      a[g][high] = element<kind>(from[2], part);
      a[g + 8][high] = element<kind>(from[3], part);
      b[g][low] = element<kind>(request(lane).b[0], part);
      b[g][high] = element<kind>(request(lane).b[1], part);
    }
  }
  // The hardware's order of summation is its own: any order will do.
  const int turn = machine().order == Order::random ? int(machine().random.below(k)) : 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      D& d = static_cast<D*>(request(lane).d)[i];
      for (int j = 0; j < k; ++j) add(d, a[row][j ^ turn] * b[column][j ^ turn]);
    }
  }
}

struct Product {
  const char* name;
  Meeting::Complete* complete;
};
constexpr Product kProducts[] = {{"mma_16816_bf16", complete_mma<Mma::bf16>},
                                 {"mma_16816_f16", complete_mma<Mma::f16>},
                                 {"mma_1688_tf32", complete_mma<Mma::tf32>},
                                 {"mma_16832_s8", complete_mma<Mma::s8>}};
constexpr unsigned kAll = 0xffffffff;

}  // namespace

void load_matrices(uint32_t* r, int count, bool transposed, const void* shared, Site site) {
  const Inside inside;
  if (current->lane < 8 * count) {  // the other lanes' addresses are not used
    check_shared_16(shared, "ldmatrix", site);
    checks::access(shared, 16, checks::Access::read, site);
  }
  MatrixRequest request{r, count, transposed, static_cast<const std::byte*>(shared)};
  meet(count == 4 ? "ldmatrix_x4" : "ldmatrix_x2", kAll, &request, site, complete_load);
}

void multiply(Mma kind, void* d, const uint32_t* a, const uint32_t* b, Site site) {
  const Inside inside;
  MmaRequest request{d, a, b};
  meet(kProducts[int(kind)].name, kAll, &request, site, kProducts[int(kind)].complete);
}

}  // namespace simt::host
