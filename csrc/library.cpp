// Every op's schema, in one place. Kernels: csrc/cpu/<op>.cpp. Fakes and autograd: graceful_fast/_ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(graceful_fast, m) {
  // Per sample: bit 0 old right, bit 1 new right, bits 2 and 3 a NaN among its scores. status: first bad target or -1.
  m.def("flips(Tensor old, Tensor new, Tensor target, int topk) -> (Tensor outcome, Tensor status)");

  // loss: reduced, or of each row; statistics: math/row_statistics.h, for the backward pass. Choices: cpu/distill.h.
  m.def(
      "distill_forward(Tensor new_logits, Tensor old_logits, Tensor target, Tensor? weight, int divergence, int focus, "
      "float alpha, float beta, float temperature, float distillation_weight, float cross_entropy_weight, "
      "float label_smoothing, int ignore_index, int reduction) -> (Tensor loss, Tensor statistics)");
  m.def(
      "distill_backward(Tensor grad_output, Tensor new_logits, Tensor old_logits, Tensor target, Tensor statistics, "
      "int divergence, float temperature, float label_smoothing) -> Tensor");

  // A block of an online softmax, in place: products -> exponentials; statistics: cpu/influence.h.
  m.def(
      "influence(Tensor(a!) logits, Tensor(b!) statistics, Tensor target, Tensor? factor, Tensor? bias, "
      "int first_class) -> Tensor shrink");

  // The k best gallery rows of each query. metric: 0 ip, 1 l2, 2 cosine. status: see csrc/cpu/scan.cpp.
  m.def(
      "scan_collect(Tensor queries, Tensor gallery, int k, int metric, Tensor? query_ids, Tensor? gallery_ids, "
      "Tensor? query_groups, Tensor? gallery_groups) -> (Tensor scores, Tensor indices, Tensor status)");
}
