// Every op's schema, in one place. Kernels: csrc/cpu/<op>.cpp. Fakes and autograd: graceful_fast/_ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(graceful_fast, m) {
  // Per sample: bit 0 old right, bit 1 new right, bits 2 and 3 a NaN among its scores. status: first bad target or -1.
  m.def("flips(Tensor old, Tensor new, Tensor target, int topk) -> (Tensor outcome, Tensor status)");
}
