// GF_HD: a function for the host and, where a CUDA compiler reads it, for the device.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define GF_HD __host__ __device__
#else
#define GF_HD
#endif
