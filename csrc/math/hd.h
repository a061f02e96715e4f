// GF_HD: before a function that both the CPU's code and a GPU's kernels call.
#pragma once

#ifdef __CUDACC__
#define GF_HD __host__ __device__
#else
#define GF_HD
#endif
