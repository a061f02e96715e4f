// distill: torch tensors -> the Params of kernels/distill.h -> kernels. Nothing here waits for the device or looks at a
// tensor's values: a target that is no class makes its row's loss and gradient NaN.
#include "kernels/distill.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "cuda/bind.h"
#include "distill_arguments.h"

namespace graceful_fast {
namespace {

using Optional = std::optional<Tensor>;

// A call of one of the ops, and the workspace that lives as long.
class Call {
 public:
  Call(const char* name, const Tensor& on, const Tensor& target) : op(name, on), n(target.numel()) {
    check_integers(target, "target");
    target_ = op.input<int64_t>(target, "target");
  }
  const Op op;
  const int64_t n;

  DistillLogits logits(const Tensor& new_logits, const Tensor& old_logits, const Optional& new_column,
                       const Optional& old_column, int64_t first_class, int64_t divergence, double margin,
                       bool exclude_target, double temperature, int64_t ignore_index) {
    check_choices(divergence, 0, 0, temperature);
    check_pairs(new_column, old_column);
    const bool ldi = divergence == int64_t(DivergenceKind::ldi);
    DistillLogits logits{op.rows(new_logits, "new_logits"),
                         op.rows(old_logits, "old_logits"),
                         nullptr,
                         0,
                         target_,
                         first_class,
                         ignore_index,
                         DivergenceKind(divergence),
                         within_range(temperature),
                         ldi ? margin : 0,
                         ldi && exclude_target};
    check_batch(logits.new_logits, logits.old_logits, n);
    const int64_t columns = logits.new_logits.columns;
    logits.shared = std::min(columns, logits.old_logits.columns);
    if (old_column && !new_column) {
      GF_CHECK(old_column->numel() == columns, "distill", "old_column: expected ", columns, " as new_logits, got ",
               old_column->numel());
      check_integers(*old_column, "old_column");
      logits.old_column = op.input<int64_t>(*old_column, "old_column");
    } else if (new_column) {
      columns_ = op.empty({columns}, ScalarType::Long);
      auto* const dense = op.output<int64_t>(*columns_, "columns");
      launch_distill_columns(op.input<int64_t>(*new_column, "new_column"), op.input<int64_t>(*old_column, "old_column"),
                             new_column->numel(), columns, dense, op.stream());
      logits.old_column = dense;
    }
    return logits;
  }

  // Parts of a row of these logits: as many tiles each, so many that enough warps are at work.
  int64_t splits(const DistillLogits& logits) const {
    const int64_t tile = distill_tile(logits), tiles = (logits.new_logits.columns + tile - 1) / tile;
    return std::clamp<int64_t>((distill_warps + n - 1) / std::max<int64_t>(1, n), 1, std::max<int64_t>(1, tiles));
  }
  // The parts of all splits, in a workspace.
  DistillMerge accumulate(const DistillLogits& logits, bool with_total) {
    DistillParts params{logits, with_total, splits(logits), nullptr};
    workspace_ = op.empty({params.splits, n, kRowPart}, ScalarType::Double);
    params.parts = op.output<double>(*workspace_, "parts");
    launch_distill_parts(params, op.stream());
    return {params.parts, params.splits, n, nullptr, logits.temperature};
  }

  // Loss and statistics of rows whose parts are these.
  std::tuple<Tensor, Tensor> finish(const DistillMerge& merge, const Optional& weight, int64_t classes, bool wide,
                                    int64_t divergence, int64_t ignore_index, int64_t focus, double alpha, double beta,
                                    double distillation_weight, double cross_entropy_weight, double label_smoothing,
                                    int64_t reduction) {
    check_choices(divergence, focus, reduction, merge.temperature);
    const bool rows = reduction == int64_t(Reduction::none);
    const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
    const Tensor loss = rows ? op.empty({n}, dtype) : op.empty({}, dtype);
    const Tensor statistics = op.empty({n, kRowStatistics}, ScalarType::Double);
    const Tensor losses = op.empty({rows ? 0 : n}, ScalarType::Double);
    DistillFinish params{merge,
                         {DivergenceKind(divergence), Focus(focus), alpha, beta, merge.temperature, label_smoothing,
                          double(classes), cross_entropy_weight, distillation_weight},
                         target_,
                         nullptr,
                         ignore_index,
                         Reduction(reduction),
                         wide,
                         op.output<double>(statistics, "statistics"),
                         op.output<double>(losses, "losses"),
                         op.output<void>(loss, "loss")};
    if (params.rule.focus == Focus::weight) {
      GF_CHECK(weight, "distill", "weight: expected a tensor for this focus");
      check_rows(*weight, "weight", n, 1);
      params.weight = op.input<double>(*weight, "weight");
    }
    launch_distill_finish(params, op.stream());
    return {loss, statistics};
  }

  void backward(DistillBackward params, const Tensor& grad_output, const Tensor& statistics) const {
    check_grad_output(grad_output, n, params.logits.new_logits.type == Element::float64);
    check_rows(statistics, "statistics", n, kRowStatistics);
    params.statistics = op.input<double>(statistics, "statistics");
    params.grad_output = op.input<void>(grad_output, "grad_output");
    params.grad_output_stride = grad_output.dim() == 0 ? 0 : grad_output.stride(0);
    launch_distill_backward(params, op.stream());
  }

 private:
  const int64_t* target_;
  Optional columns_, workspace_;
};

std::tuple<Tensor, Tensor> forward(const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                                   const Optional& weight, const Optional& new_column, const Optional& old_column,
                                   int64_t divergence, double margin, bool exclude_target, double temperature,
                                   int64_t ignore_index, int64_t focus, double alpha, double beta,
                                   double distillation_weight, double cross_entropy_weight, double label_smoothing,
                                   int64_t reduction) {
  Call call("distill_forward", new_logits, target);
  const DistillLogits logits = call.logits(new_logits, old_logits, new_column, old_column, 0, divergence, margin,
                                           exclude_target, temperature, ignore_index);
  return call.finish(call.accumulate(logits, label_smoothing != 0), weight, logits.new_logits.columns,
                     logits.new_logits.type == Element::float64, divergence, ignore_index, focus, alpha, beta,
                     distillation_weight, cross_entropy_weight, label_smoothing, reduction);
}

// The parts of a block of classes, merged with `parts` of other classes.
Tensor accumulate(const Optional& parts, const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                  const Optional& new_column, const Optional& old_column, int64_t first_class, int64_t divergence,
                  double margin, bool exclude_target, double temperature, int64_t ignore_index) {
  Call call("distill_accumulate", new_logits, target);
  DistillMerge merge = call.accumulate(call.logits(new_logits, old_logits, new_column, old_column, first_class,
                                                   divergence, margin, exclude_target, temperature, ignore_index),
                                       true);
  if (parts) {
    check_rows(*parts, "parts", call.n, kRowPart);
    merge.before = call.op.input<double>(*parts, "parts before");
  }
  const Tensor merged = call.op.empty({call.n, kRowPart}, ScalarType::Double);
  launch_distill_merge(merge, call.op.output<double>(merged, "merged"), call.op.stream());
  return merged;
}

DistillMerge merge_of(const Op& op, const Tensor& parts, int64_t shards, int64_t n, double temperature) {
  check_rows(parts, "parts", shards * n, kRowPart);
  return {op.input<double>(parts, "parts"), shards, n, nullptr, within_range(temperature)};
}

// (shards, n, kRowPart) -> (n, kRowPart)
Tensor merge(const Tensor& parts, double temperature) {
  const Op op("distill_merge", parts);
  GF_CHECK(parts.dim() == 3, "distill", "parts: expected 3 dimensions, got ", parts.dim());
  const Tensor merged = op.empty({parts.size(1), kRowPart}, ScalarType::Double);
  launch_distill_merge(merge_of(op, parts, parts.size(0), parts.size(1), temperature),
                       op.output<double>(merged, "merged"), op.stream());
  return merged;
}

std::tuple<Tensor, Tensor> finish(const Tensor& parts, const Tensor& target, const Optional& weight, int64_t classes,
                                  bool wide, int64_t divergence, double temperature, int64_t ignore_index,
                                  int64_t focus, double alpha, double beta, double distillation_weight,
                                  double cross_entropy_weight, double label_smoothing, int64_t reduction) {
  Call call("distill_finish", parts, target);
  return call.finish(merge_of(call.op, parts, 1, call.n, temperature), weight, classes, wide, divergence, ignore_index,
                     focus, alpha, beta, distillation_weight, cross_entropy_weight, label_smoothing, reduction);
}

Tensor backward(const Tensor& grad_output, const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                const Tensor& statistics, const Optional& new_column, const Optional& old_column, int64_t divergence,
                double margin, bool exclude_target, double temperature, int64_t ignore_index, double label_smoothing) {
  Call call("distill_backward", new_logits, target);
  DistillBackward params{};
  params.logits = call.logits(new_logits, old_logits, new_column, old_column, 0, divergence, margin, exclude_target,
                              temperature, ignore_index);
  const int64_t classes = params.logits.new_logits.columns;
  const Tensor result = call.op.empty({call.n, classes}, new_logits.scalar_type());
  params.gradient = call.op.output<void>(result, "gradient");
  params.gradient_stride = params.logits.new_logits.columns;
  params.classes = double(classes);
  params.label_smoothing = label_smoothing;
  call.backward(params, grad_output, statistics);
  return result;
}

// The gradient of a block of classes, in place of its logits.
void backward_in_place(const Tensor& grad_output, const Tensor& new_logits, const Tensor& old_logits,
                       const Tensor& target, const Tensor& statistics, const Optional& new_column,
                       const Optional& old_column, int64_t first_class, int64_t classes, int64_t divergence,
                       double margin, bool exclude_target, double temperature, int64_t ignore_index,
                       double label_smoothing) {
  Call call("distill_backward_", new_logits, target);
  DistillBackward params{};
  params.logits = call.logits(new_logits, old_logits, new_column, old_column, first_class, divergence, margin,
                              exclude_target, temperature, ignore_index);
  params.gradient = const_cast<void*>(params.logits.new_logits.data);
  params.gradient_stride = params.logits.new_logits.row_stride;
  params.classes = double(classes);
  params.label_smoothing = label_smoothing;
  call.backward(params, grad_output, statistics);
}

GF_DEVICE_LIBRARY_IMPL(m) {
  m.impl("distill_forward", TORCH_BOX(&forward));
  m.impl("distill_accumulate", TORCH_BOX(&accumulate));
  m.impl("distill_merge", TORCH_BOX(&merge));
  m.impl("distill_finish", TORCH_BOX(&finish));
  m.impl("distill_backward", TORCH_BOX(&backward));
  m.impl("distill_backward_", TORCH_BOX(&backward_in_place));
}

}  // namespace
}  // namespace graceful_fast
