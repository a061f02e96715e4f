// Which instruction set the CPU kernels run with: chosen once, when the library is loaded.
//
// Every op has one kernel source, csrc/cpu/<op>_kernels.cpp, compiled once per instruction set with GF_ISA = baseline,
// avx2, avx512 or neon. Each object file exports a single table, <op>_<isa>; all else in it lives in anonymous
// namespaces, so that the linker can never put an AVX-512 copy of a shared inline function into the path of an older
// CPU.
#pragma once

namespace graceful_fast {

enum class Isa { baseline, avx2, avx512, neon };

Isa isa();  // the choice made at load time

// The table for the chosen instruction set, out of the tables that this build has.
#if defined(__x86_64__)
#define GF_DECLARE_TABLE(Table, op) extern const Table op##_baseline, op##_avx2, op##_avx512;
#define GF_CHOOSE_TABLE(op)                            \
  (::graceful_fast::isa() == Isa::avx512 ? op##_avx512 \
   : ::graceful_fast::isa() == Isa::avx2 ? op##_avx2   \
                                         : op##_baseline)
#elif defined(__aarch64__)
#define GF_DECLARE_TABLE(Table, op) extern const Table op##_baseline, op##_neon;
#define GF_CHOOSE_TABLE(op) (::graceful_fast::isa() == Isa::neon ? op##_neon : op##_baseline)
#else
#define GF_DECLARE_TABLE(Table, op) extern const Table op##_baseline;
#define GF_CHOOSE_TABLE(op) (op##_baseline)
#endif

// In a kernel source: `extern const FlipsKernels GF_TABLE(flips) = {...};` defines this instruction set's table.
#define GF_TABLE(op) GF_TABLE_(op, GF_ISA)
#define GF_TABLE_(op, isa) GF_TABLE__(op, isa)
#define GF_TABLE__(op, isa) op##_##isa

}  // namespace graceful_fast
