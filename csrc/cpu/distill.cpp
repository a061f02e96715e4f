// distill: torch tensors -> DistillAccumulate, DistillBackward -> kernels; the mean over rows, in float64 and in row
// order.
#include "cpu/distill.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bind.h"
#include "cpu/outputs.h"
#include "distill_arguments.h"
#include "math/row_statistics.h"

namespace graceful_fast {
namespace {

enum class Reduction : int64_t { mean, sum, none };

const int64_t* integers(const Tensor& tensor, const char* name) {
  check_integers(tensor, name);
  return pointer<int64_t>(tensor);
}

double* rows_of(const Tensor& tensor, const char* name, int64_t n, int64_t columns) {
  check_rows(tensor, name, n, columns);
  return mutable_pointer<double>(tensor);
}

// Gradients from this size on are written past the caches: what is read next would be gone from them anyway.
constexpr size_t kPastCaches = size_t{16} << 20;

// 2^14 classes a task: some tens of microseconds, far above the cost of handing it to a thread.
int64_t grain(int64_t classes) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, classes)); }

DistillRows rows_from(const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                      const std::optional<Tensor>& new_column, const std::optional<Tensor>& old_column,
                      int64_t first_class, int64_t divergence, double margin, bool exclude_target, double temperature,
                      int64_t ignore_index) {
  const int64_t n = target.numel();
  check_choices(divergence, 0, 0, temperature);
  DistillRows rows{matrix(new_logits, "distill", "new_logits"),
                   matrix(old_logits, "distill", "old_logits"),
                   nullptr,
                   nullptr,
                   0,
                   integers(target, "target"),
                   first_class,
                   ignore_index,
                   DivergenceKind(divergence),
                   within_range(temperature),
                   divergence == int64_t(DivergenceKind::ldi) ? margin : 0,
                   divergence == int64_t(DivergenceKind::ldi) && exclude_target};
  const int64_t columns = rows.new_logits.columns, old_columns = rows.old_logits.columns;
  check_batch(rows.new_logits, rows.old_logits, n);
  rows.pairs = std::min(columns, old_columns);
  if (new_column) {
    check_pairs(new_column, old_column);
    rows.new_column = integers(*new_column, "new_column");
    rows.old_column = integers(*old_column, "old_column");
    rows.pairs = new_column->numel();
    for (int64_t p = 0; p < rows.pairs; ++p) {
      const int64_t before = p ? rows.new_column[p - 1] : -1;
      GF_CHECK(rows.new_column[p] > before && rows.new_column[p] < columns, "distill",
               "new_column: expected ascending columns below ", columns, ", got ", rows.new_column[p], " after ",
               before);
      GF_CHECK(rows.old_column[p] >= 0 && rows.old_column[p] < old_columns, "distill",
               "old_column: expected 0 <= column < ", old_columns, ", got ", rows.old_column[p]);
    }
  }
  return rows;
}

// Parts of no class yet.
void clear(double* parts, int64_t n) { std::fill_n(reinterpret_cast<RowPart*>(parts), n, RowPart{}); }

// What `finish` needs beside the parts.
struct Finish {
  LossRule rule;
  const int64_t* target;
  const double* weight;
  int64_t ignore_index;
  Reduction reduction;
  bool wide;
};

Finish finish_from(const Tensor& target, const std::optional<Tensor>& weight, int64_t classes, int64_t divergence,
                   int64_t focus, double alpha, double beta, double temperature, double distillation_weight,
                   double cross_entropy_weight, double label_smoothing, int64_t ignore_index, int64_t reduction,
                   bool wide) {
  check_choices(divergence, focus, reduction, temperature);
  const int64_t n = target.numel();
  Finish finish{{DivergenceKind(divergence), Focus(focus), alpha, beta, within_range(temperature), label_smoothing,
                 double(classes), cross_entropy_weight, distillation_weight},
                integers(target, "target"),
                nullptr,
                ignore_index,
                Reduction(reduction),
                wide};
  if (finish.rule.focus == Focus::weight) {
    GF_CHECK(weight, "distill", "weight: expected a tensor for this focus");
    finish.weight = rows_of(*weight, "weight", n, 1);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t y = finish.target[i];
    GF_CHECK((y >= 0 && y < classes) || y == ignore_index, "distill", "target: expected 0 <= target < ", classes,
             " or ignore_index ", ignore_index, ", got ", y, " at row ", i);
  }
  return finish;
}

// Losses and statistics of rows begin..end-1.
void finish_rows(const Finish& finish, const double* parts, double* statistics, double* losses, int64_t begin,
                 int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    auto& row = reinterpret_cast<RowStatistics*>(statistics)[i];
    row = {};
    losses[i] = finish.target[i] == finish.ignore_index
                    ? 0
                    : finish_row(reinterpret_cast<const RowPart*>(parts)[i], finish.rule,
                                 finish.weight ? finish.weight[i] : 0, row);
  }
}

// The losses reduced, in row order: the same bits for any number of threads. A mean's divisor goes into the statistics.
Tensor reduce(const Finish& finish, const std::vector<double>& losses, double* statistics) {
  const int64_t n = int64_t(losses.size());
  const bool rows = finish.reduction == Reduction::none;
  Tensor loss = rows ? empty({n}, finish.wide ? ScalarType::Double : ScalarType::Float)
                     : empty({}, finish.wide ? ScalarType::Double : ScalarType::Float);
  const auto write = [&](int64_t at, double value) {
    if (finish.wide) {
      mutable_pointer<double>(loss)[at] = value;
    } else {
      mutable_pointer<float>(loss)[at] = float(value);
    }
  };
  if (rows) {
    for (int64_t i = 0; i < n; ++i) write(i, losses[size_t(i)]);
    return loss;
  }
  double total = 0;
  int64_t counted = 0;
  for (int64_t i = 0; i < n; ++i) total += losses[size_t(i)], counted += finish.target[i] != finish.ignore_index;
  double count = 1;
  if (finish.reduction == Reduction::mean) {
    count = double(std::max<int64_t>(1, counted));
    for (int64_t i = 0; i < n; ++i) {
      auto& row = reinterpret_cast<RowStatistics*>(statistics)[i];
      row.cross_entropy /= count, row.distillation /= count;
    }
  }
  write(0, total / count);
  return loss;
}

std::tuple<Tensor, Tensor> forward(const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                                   const std::optional<Tensor>& weight, const std::optional<Tensor>& new_column,
                                   const std::optional<Tensor>& old_column, int64_t divergence, double margin,
                                   bool exclude_target, double temperature, int64_t ignore_index, int64_t focus,
                                   double alpha, double beta, double distillation_weight, double cross_entropy_weight,
                                   double label_smoothing, int64_t reduction) {
  const int64_t n = target.numel();
  DistillAccumulate params{rows_from(new_logits, old_logits, target, new_column, old_column, 0, divergence, margin,
                                     exclude_target, temperature, ignore_index),
                           label_smoothing != 0, nullptr};
  const int64_t classes = params.rows.new_logits.columns;
  const Finish finish = finish_from(target, weight, classes, divergence, focus, alpha, beta, temperature,
                                    distillation_weight, cross_entropy_weight, label_smoothing, ignore_index, reduction,
                                    params.rows.new_logits.type == Element::float64);
  Tensor statistics = empty({n, kRowStatistics}, ScalarType::Double);
  double* const to = mutable_pointer<double>(statistics);
  const auto parts = std::make_unique_for_overwrite<double[]>(static_cast<size_t>(n * kRowPart));
  std::vector<double> losses(static_cast<size_t>(n));
  params.parts = parts.get();
  const DistillKernels& kernels = GF_CHOOSE_TABLE(distill);
  torch::stable::parallel_for(0, n, grain(classes), [&](int64_t begin, int64_t end) {
    clear(params.parts + begin * kRowPart, end - begin);
    kernels.accumulate(params, begin, end);
    finish_rows(finish, params.parts, to, losses.data(), begin, end);
  });
  return {reduce(finish, losses, to), statistics};
}

// The parts of a block of classes, merged with `parts` of other classes.
Tensor accumulate(const std::optional<Tensor>& parts, const Tensor& new_logits, const Tensor& old_logits,
                  const Tensor& target, const std::optional<Tensor>& new_column,
                  const std::optional<Tensor>& old_column, int64_t first_class, int64_t divergence, double margin,
                  bool exclude_target, double temperature, int64_t ignore_index) {
  const int64_t n = target.numel();
  DistillAccumulate params{rows_from(new_logits, old_logits, target, new_column, old_column, first_class, divergence,
                                     margin, exclude_target, temperature, ignore_index),
                           true, nullptr};
  Tensor merged = empty({n, kRowPart}, ScalarType::Double);
  params.parts = mutable_pointer<double>(merged);
  if (parts) {
    std::copy_n(rows_of(*parts, "parts", n, kRowPart), n * kRowPart, params.parts);
  } else {
    clear(params.parts, n);
  }
  const DistillKernels& kernels = GF_CHOOSE_TABLE(distill);
  torch::stable::parallel_for(0, n, grain(params.rows.new_logits.columns),
                              [&](int64_t begin, int64_t end) { kernels.accumulate(params, begin, end); });
  return merged;
}

// (shards, n, kRowPart) -> (n, kRowPart)
Tensor merge(const Tensor& parts, double temperature) {
  GF_CHECK(parts.dim() == 3, "distill", "parts: expected 3 dimensions, got ", parts.dim());
  const int64_t shards = parts.size(0), n = parts.size(1);
  const auto* from = reinterpret_cast<const RowPart*>(rows_of(parts, "parts", shards * n, kRowPart));
  Tensor merged = empty({n, kRowPart}, ScalarType::Double);
  clear(mutable_pointer<double>(merged), n);
  auto* to = reinterpret_cast<RowPart*>(mutable_pointer<double>(merged));
  for (int64_t shard = 0; shard < shards; ++shard) {
    for (int64_t i = 0; i < n; ++i) to[i].merge(from[shard * n + i], within_range(temperature));
  }
  return merged;
}

std::tuple<Tensor, Tensor> finish(const Tensor& parts, const Tensor& target, const std::optional<Tensor>& weight,
                                  int64_t classes, bool wide, int64_t divergence, double temperature,
                                  int64_t ignore_index, int64_t focus, double alpha, double beta,
                                  double distillation_weight, double cross_entropy_weight, double label_smoothing,
                                  int64_t reduction) {
  const int64_t n = target.numel();
  const Finish rule =
      finish_from(target, weight, classes, divergence, focus, alpha, beta, temperature, distillation_weight,
                  cross_entropy_weight, label_smoothing, ignore_index, reduction, wide);
  Tensor statistics = empty({n, kRowStatistics}, ScalarType::Double);
  double* const to = mutable_pointer<double>(statistics);
  std::vector<double> losses(static_cast<size_t>(n));
  finish_rows(rule, rows_of(parts, "parts", n, kRowPart), to, losses.data(), 0, n);
  return {reduce(rule, losses, to), statistics};
}

void gradient(DistillBackward params, const Tensor& grad_output, const Tensor& statistics, bool wide) {
  const int64_t n = params.rows.new_logits.rows;
  check_grad_output(grad_output, n, wide);
  params.statistics = rows_of(statistics, "statistics", n, kRowStatistics);
  params.grad_output = grad_output.const_data_ptr();
  params.grad_output_stride = grad_output.dim() == 0 ? 0 : grad_output.stride(0);
  const DistillKernels& kernels = GF_CHOOSE_TABLE(distill);
  torch::stable::parallel_for(0, n, grain(params.rows.new_logits.columns),
                              [&](int64_t begin, int64_t end) { kernels.backward(params, begin, end); });
}

Tensor backward(const Tensor& grad_output, const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                const Tensor& statistics, const std::optional<Tensor>& new_column,
                const std::optional<Tensor>& old_column, int64_t divergence, double margin, bool exclude_target,
                double temperature, int64_t ignore_index, double label_smoothing) {
  DistillBackward params{};
  params.rows = rows_from(new_logits, old_logits, target, new_column, old_column, 0, divergence, margin, exclude_target,
                          temperature, ignore_index);
  const int64_t n = target.numel(), classes = params.rows.new_logits.columns;
  Tensor result = large_empty({n, classes}, new_logits.scalar_type(), new_logits.element_size());
  params.gradient = result.mutable_data_ptr();
  params.gradient_stride = classes;
  params.classes = double(classes);
  params.past_caches = size_t(n * classes) * new_logits.element_size() >= kPastCaches;
  params.label_smoothing = label_smoothing;
  gradient(params, grad_output, statistics, params.rows.new_logits.type == Element::float64);
  return result;
}

// The gradient of a block of classes, in place of its logits.
void backward_in_place(const Tensor& grad_output, const Tensor& new_logits, const Tensor& old_logits,
                       const Tensor& target, const Tensor& statistics, const std::optional<Tensor>& new_column,
                       const std::optional<Tensor>& old_column, int64_t first_class, int64_t classes,
                       int64_t divergence, double margin, bool exclude_target, double temperature, int64_t ignore_index,
                       double label_smoothing) {
  DistillBackward params{};
  params.rows = rows_from(new_logits, old_logits, target, new_column, old_column, first_class, divergence, margin,
                          exclude_target, temperature, ignore_index);
  params.gradient = new_logits.mutable_data_ptr();
  params.gradient_stride = params.rows.new_logits.row_stride;
  params.classes = double(classes);
  params.label_smoothing = label_smoothing;
  gradient(params, grad_output, statistics, params.rows.new_logits.type == Element::float64);
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) {
  m.impl("distill_forward", TORCH_BOX(&forward));
  m.impl("distill_accumulate", TORCH_BOX(&accumulate));
  m.impl("distill_merge", TORCH_BOX(&merge));
  m.impl("distill_finish", TORCH_BOX(&finish));
  m.impl("distill_backward", TORCH_BOX(&backward));
  m.impl("distill_backward_", TORCH_BOX(&backward_in_place));
}

}  // namespace
}  // namespace graceful_fast
