// Every op's schema, in one place. Kernels: csrc/cpu/<op>.cpp, csrc/cuda/<op>.cpp. Fakes and autograd:
// graceful_fast/_ops.py.
#include <torch/csrc/stable/library.h>

#ifdef GF_SIMT  // the CUDA kernels on the emulator: beside the ops proper, for CPU tensors
STABLE_TORCH_LIBRARY(graceful_fast_simt, m) {
#else
STABLE_TORCH_LIBRARY(graceful_fast, m) {
#endif
  // Per sample: bit 0 old right, bit 1 new right, bits 2 and 3 a NaN among its scores. status: first bad target or -1.
  m.def("flips(Tensor old, Tensor new, Tensor target, int topk) -> (Tensor outcome, Tensor status)");

  // loss: reduced, or of each row; statistics: RowStatistics of math/row_statistics.h, for the backward pass.
  // new_column, old_column: the columns that are one class, ascending; null: the first columns of both. CUDA also takes
  // old_column alone: the old column of each new one, -1 where there is none. Choices: _ops.py.
  m.def(
      "distill_forward(Tensor new_logits, Tensor old_logits, Tensor target, Tensor? weight, Tensor? new_column, "
      "Tensor? old_column, int divergence, float margin, bool exclude_target, float temperature, int ignore_index, "
      "int focus, float alpha, float beta, float distillation_weight, float cross_entropy_weight, "
      "float label_smoothing, int reduction) -> (Tensor loss, Tensor statistics)");
  m.def(
      "distill_backward(Tensor grad_output, Tensor new_logits, Tensor old_logits, Tensor target, Tensor statistics, "
      "Tensor? new_column, Tensor? old_column, int divergence, float margin, bool exclude_target, float temperature, "
      "int ignore_index, float label_smoothing) -> Tensor");

  // The same from blocks of classes: RowPart of each row, merged over blocks and shards in any order, then the loss.
  // first_class: class of the first column; classes: of whole rows. distill_backward_ puts the gradient over the
  // logits.
  m.def(
      "distill_accumulate(Tensor? parts, Tensor new_logits, Tensor old_logits, Tensor target, Tensor? new_column, "
      "Tensor? old_column, int first_class, int divergence, float margin, bool exclude_target, float temperature, "
      "int ignore_index) -> Tensor");
  m.def("distill_merge(Tensor parts, float temperature) -> Tensor");
  m.def(
      "distill_finish(Tensor parts, Tensor target, Tensor? weight, int classes, bool wide, int divergence, "
      "float temperature, int ignore_index, int focus, float alpha, float beta, float distillation_weight, "
      "float cross_entropy_weight, float label_smoothing, int reduction) -> (Tensor loss, Tensor statistics)");
  m.def(
      "distill_backward_(Tensor grad_output, Tensor(a!) new_logits, Tensor old_logits, Tensor target, "
      "Tensor statistics, Tensor? new_column, Tensor? old_column, int first_class, int classes, int divergence, "
      "float margin, bool exclude_target, float temperature, int ignore_index, float label_smoothing) -> ()");

  // A block of an online softmax, in place: products -> exponentials; statistics: cpu/influence.h.
  m.def(
      "influence(Tensor(a!) logits, Tensor(b!) statistics, Tensor target, Tensor? factor, Tensor? bias, "
      "int first_class) -> Tensor shrink");

  // keys, rows: the k best gallery rows of each query so far; out: with this block of the gallery, whose first row has
  // the number first_row. codes, facts: of scan_quantize. candidate_bytes: for rows not settled yet, about. metric: 0
  // ip, 1 l2, 2 cosine. status: see csrc/cpu/scan.cpp.
  m.def(
      "scan_collect(Tensor queries, Tensor gallery, Tensor? codes, Tensor? facts, Tensor(a!) keys, Tensor(b!) rows, "
      "int first_row, int metric, Tensor? query_ids, Tensor? gallery_ids, Tensor? query_groups, "
      "Tensor? gallery_groups, bool coded, int candidate_bytes) -> Tensor status");
  // The same where the originals are elsewhere: what may be among the best by the codes alone; and its settlement, once
  // those rows are taken: `places` among them.
  m.def(
      "scan_shortlist(Tensor queries, Tensor codes, Tensor facts, Tensor keys, Tensor rows, int metric, "
      "Tensor? query_ids, Tensor? gallery_ids, Tensor? query_groups, Tensor? gallery_groups, int candidate_bytes) "
      "-> (Tensor offsets, Tensor listed, Tensor status)");
  m.def(
      "scan_settle(Tensor queries, Tensor taken, Tensor numbers, Tensor offsets, Tensor places, Tensor(a!) keys, "
      "Tensor(b!) rows, int metric) -> Tensor status");
  m.def("scan_quantize(Tensor rows) -> (Tensor codes, Tensor facts, Tensor status)");

  // Of each query's positives (start[i] to start[i + 1] - 1 of keys, float64, best first, and rows, their numbers), how
  // many rows have a greater score, an equal one, an equal one at a smaller row: added to counts (3, P) for this block
  // of the gallery, whose first row has the number first_row.
  m.def(
      "scan_count(Tensor queries, Tensor gallery, int first_row, int metric, Tensor start, Tensor keys, Tensor rows, "
      "Tensor(a!) counts) -> Tensor status");

  // Scores of all pairs of a row of a and a row of b (within: b is a, every two rows once), but those of one id, by
  // bins: counts (2, bins) of impostors and genuine pairs. labels, ids: int32. Some pairs are kept, up to `capacity`,
  // in no order; kinds: 1 genuine, 0 impostor; kept: how many there are. scan_histogram bins scan scores, from `origin`
  // on; the first and the last bin take what lies beyond. It keeps the pairs (a's row * rows of b + b's row) of the
  // bins keep[i][0] to keep[i][1], with their places, in bins; a place is within `margin` of that of the float64 score.
  m.def(
      "scan_histogram(Tensor a, Tensor b, int metric, Tensor a_labels, Tensor b_labels, Tensor? a_ids, Tensor? b_ids, "
      "bool within, float origin, float width, int bins, Tensor keep, int capacity) -> (Tensor counts, Tensor places, "
      "Tensor pairs, Tensor kinds, Tensor margin, Tensor kept, Tensor status)");
  // scan_between bins float64 scores: each bin has 2^shift values from `lowest` on, but the first and the last, which
  // take what lies below and above; it keeps the scores of all others.
  m.def(
      "scan_between(Tensor a, Tensor b, int metric, Tensor a_labels, Tensor b_labels, Tensor? a_ids, Tensor? b_ids, "
      "bool within, int lowest, int shift, int bins, int capacity) -> (Tensor counts, Tensor keys, Tensor kinds, "
      "Tensor kept, Tensor status)");
  // The float64 scores of pairs of rows, larger is better.
  m.def("scan_pairs(Tensor a, Tensor b, int metric, Tensor rows, Tensor columns) -> Tensor");
}
