// ldmatrix and the four kinds of mma against plain products of matrices, and mma fed by ldmatrix.
#include <bit>
#include <cstring>

#include "math/half.h"
#include "test.h"

namespace {

using Contents = simt::Buffer::Contents;

uint32_t step(uint32_t& state) { return (state = state * 1664525 + 1013904223) >> 8; }

// Small whole numbers: every product and sum is exact in every kind.
float small(uint32_t& state) { return float(int(step(state) % 17) - 8); }

struct Operands {
  const void *a, *b;  // [16][K] by rows, [8][K]: b by columns
  void* d;            // [16][8] inout
};

// The fragments by the PTX manual's formulas, element by element.
template <typename T, int K, auto mma, typename D>
__global__ void mma_kernel(Operands p) {
  constexpr int kPacked = 4 / sizeof(T);
  const int group = threadIdx.x / 4, in_group = threadIdx.x % 4;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i % 2) * 8, column = in_group * kPacked + (i / 2) * K / 2;
    a[i] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.a) + row * K + column);
  }
  for (int i = 0; i < 2; ++i) {
    b[i] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.b) + group * K + in_group * kPacked + i * K / 2);
  }
  D d[4];
  D* out = static_cast<D*>(p.d);
  for (int i = 0; i < 4; ++i) d[i] = out[(group + 8 * (i / 2)) * 8 + 2 * in_group + i % 2];
  mma(d, a, b);
  for (int i = 0; i < 4; ++i) out[(group + 8 * (i / 2)) * 8 + 2 * in_group + i % 2] = d[i];
}

void store(float from, int8_t& to) { to = int8_t(from); }
void store(float from, float& to) { to = from; }
void store(float from, graceful_fast::BFloat16& to) { to.bits = uint16_t(std::bit_cast<uint32_t>(from) >> 16); }
void store(float from, graceful_fast::Half& to) { graceful_fast::narrow(from, to); }

template <typename T, int K, auto mma, typename D>
void check_mma() {
  uint32_t state = 7;
  alignas(16) T a[16][K], b[8][K];
  float plain_a[16][K], plain_b[8][K];
  D d[16][8], expected[16][8];
  for (int i = 0; i < 16 * K; ++i) store(plain_a[i / K][i % K] = small(state), a[i / K][i % K]);
  for (int i = 0; i < 8 * K; ++i) store(plain_b[i / K][i % K] = small(state), b[i / K][i % K]);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      d[i][j] = D(100 * i + j);
      expected[i][j] = d[i][j];
      for (int k = 0; k < K; ++k) expected[i][j] += D(plain_a[i][k] * plain_b[j][k]);
    }
  }
  const simt::Buffer buffers[] = {{"a", a, sizeof a, Contents::initialised},
                                  {"b", b, sizeof b, Contents::initialised},
                                  {"d", d, sizeof d, Contents::initialised}};
  simt::launch("mma", mma_kernel<T, K, mma, D>, 1, 32, 0, nullptr, {a, b, d});
  EXPECT(std::memcmp(d, expected, sizeof d) == 0);
}

void bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { simt::mma_16816_bf16(d, a, b); }
void f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { simt::mma_16816_f16(d, a, b); }
void tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { simt::mma_1688_tf32(d, a, b); }
void s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { simt::mma_16832_s8(d, a, b); }

TEST(mma_bf16_is_the_product) { check_mma<graceful_fast::BFloat16, 16, bf16, float>(); }
TEST(mma_f16_is_the_product) { check_mma<graceful_fast::Half, 16, f16, float>(); }
TEST(mma_tf32_is_the_product) { check_mma<float, 8, tf32, float>(); }
TEST(mma_s8_is_the_product) { check_mma<int8_t, 32, s8, int32_t>(); }

__global__ void extremes_kernel(int32_t* wrapped, float* truncated) {
  int32_t d[4] = {0x7fffffff, 0, 0, 0};
  const uint32_t a[4] = {0x80808080, 0x80808080, 0x80808080, 0x80808080}, b[2] = {0x80808080, 0x80808080};
  simt::mma_16832_s8(d, a, b);
  wrapped[threadIdx.x] = d[0];
  float f[4] = {};
  const uint32_t one_and_little = 0x3f801fff;  // 1 + 2^-10 - 2^-23: tf32 keeps 1
  const uint32_t fa[4] = {one_and_little, one_and_little, one_and_little, one_and_little},
                 fb[2] = {0x3f800000, 0x3f800000};
  simt::mma_1688_tf32(f, fa, fb);
  truncated[threadIdx.x] = f[3];
}

TEST(mma_s8_wraps_and_tf32_truncates) {
  int32_t wrapped[32];
  float truncated[32];
  const simt::Buffer buffers[] = {{"wrapped", wrapped, sizeof wrapped, Contents::uninitialised},
                                  {"truncated", truncated, sizeof truncated, Contents::uninitialised}};
  simt::launch("extremes", extremes_kernel, 1, 32, 0, nullptr, wrapped, truncated);
  for (int i = 0; i < 32; ++i) {
    EXPECT(wrapped[i] == int32_t(0x7fffffffu + 32u * 128 * 128));
    EXPECT(truncated[i] == 8);
  }
}

// All forms of ldmatrix on four 8x8 matrices whose elements are their own index; rows 48 bytes apart.
struct Loaded {
  uint32_t *x4, *x2, *x4_trans, *x2_trans;  // [32][4] or [32][2] out
};

__global__ void ldmatrix_kernel(Loaded p) {
  simt::Smem smem;
  uint16_t* tile = smem.take<uint16_t>(32 * 24);
  for (int j = 0; j < 8; ++j) tile[threadIdx.x * 24 + j] = uint16_t(threadIdx.x * 8 + j);
  __syncwarp();
  uint32_t r[4], s[4], t[2], u[2];
  simt::ldmatrix_x4(r, tile + threadIdx.x * 24);
  simt::ldmatrix_x4_trans(s, tile + threadIdx.x * 24);
  // The upper lanes' addresses are not used.
  simt::ldmatrix_x2(t, threadIdx.x < 16 ? tile + threadIdx.x * 24 : nullptr);
  simt::ldmatrix_x2_trans(u, threadIdx.x < 16 ? tile + threadIdx.x * 24 : nullptr);
  for (int i = 0; i < 4; ++i) {
    p.x4[threadIdx.x * 4 + i] = r[i];
    p.x4_trans[threadIdx.x * 4 + i] = s[i];
  }
  for (int i = 0; i < 2; ++i) {
    p.x2[threadIdx.x * 2 + i] = t[i];
    p.x2_trans[threadIdx.x * 2 + i] = u[i];
  }
}

TEST(ldmatrix_hands_out_rows_and_columns) {
  uint32_t x4[128], x2[64], x4_trans[128], x2_trans[64];
  const simt::Buffer buffers[] = {{"x4", x4, sizeof x4, Contents::uninitialised},
                                  {"x2", x2, sizeof x2, Contents::uninitialised},
                                  {"x4_trans", x4_trans, sizeof x4_trans, Contents::uninitialised},
                                  {"x2_trans", x2_trans, sizeof x2_trans, Contents::uninitialised}};
  simt::launch("ldmatrix", ldmatrix_kernel, 1, 32, simt::SmemBytes().take<uint16_t>(32 * 24).bytes, nullptr,
               {x4, x2, x4_trans, x2_trans});
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t rows = m * 64 + lane / 4 * 8 + 2 * (lane % 4);
      const uint32_t columns = m * 64 + 2 * (lane % 4) * 8 + lane / 4;
      EXPECT(x4[lane * 4 + m] == (rows | (rows + 1) << 16));
      EXPECT(x4_trans[lane * 4 + m] == (columns | (columns + 8) << 16));
      if (m < 2) {
        EXPECT(x2[lane * 2 + m] == (rows | (rows + 1) << 16));
        EXPECT(x2_trans[lane * 2 + m] == (columns | (columns + 8) << 16));
      }
    }
  }
}

}  // namespace
