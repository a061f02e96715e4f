// distill: torch tensors -> DistillForward, DistillBackward -> kernels; the mean over rows, in float64 and in row
// order.
#include "cpu/distill.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bind.h"
#include "cpu/outputs.h"
#include "math/row_statistics.h"

namespace graceful_fast {
namespace {

enum class Reduction : int64_t { mean, sum, none };

// (n, classes)
Matrix logits(const Tensor& tensor, const char* name, int64_t n) {
  const Matrix rows = matrix(tensor, "distill", name);
  GF_CHECK(rows.rows == n, "distill", name, ": expected ", n, " rows as target, got ", rows.rows);
  return rows;
}

const int64_t* targets(const Tensor& target) {
  GF_CHECK(target.dim() == 1 && target.scalar_type() == ScalarType::Long && target.is_contiguous(), "distill",
           "target: expected a contiguous int64 vector");
  return pointer<int64_t>(target);
}

// T^2 KL is at its limits beyond, and these bounds keep 1/T and the squares of (logit differences)/T normal in float32.
double within_range(double temperature) { return std::clamp(temperature, 0x1p-120, 0x1p48); }

// 2^14 classes a task: some tens of microseconds, far above the cost of handing it to a thread.
int64_t grain(int64_t classes) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, classes)); }

std::tuple<Tensor, Tensor> forward(const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                                   const std::optional<Tensor>& weight, int64_t divergence, int64_t focus, double alpha,
                                   double beta, double temperature, double distillation_weight,
                                   double cross_entropy_weight, double label_smoothing, int64_t ignore_index,
                                   int64_t reduction) {
  const int64_t n = target.numel();
  GF_CHECK(temperature > 0, "distill", "temperature: expected a positive number, got ", temperature);
  GF_CHECK(divergence >= 0 && divergence <= 1 && focus >= 0 && focus <= 4 && reduction >= 0 && reduction <= 2,
           "distill", "divergence, focus, reduction: expected 0..1, 0..4, 0..2, got ", divergence, ", ", focus, ", ",
           reduction);
  DistillForward params{logits(new_logits, "new_logits", n),
                        logits(old_logits, "old_logits", n),
                        targets(target),
                        nullptr,
                        nullptr,
                        nullptr,
                        nullptr,
                        DivergenceKind(divergence),
                        Focus(focus),
                        alpha,
                        beta,
                        within_range(temperature),
                        label_smoothing,
                        ignore_index};
  const int64_t classes = params.new_logits.columns;
  GF_CHECK(params.old_logits.columns <= classes, "distill", "old_logits: expected at most ", classes, " classes, got ",
           params.old_logits.columns);
  if (params.focus == Focus::weight) {
    GF_CHECK(weight && weight->numel() == n && weight->scalar_type() == ScalarType::Double && weight->is_contiguous(),
             "distill", "weight: expected a contiguous float64 vector of ", n);
    params.weight = pointer<double>(*weight);
  }
  int64_t counted = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t y = params.target[i];
    if (y == ignore_index) continue;
    ++counted;
    GF_CHECK(y >= 0 && y < classes, "distill", "target: expected 0 <= target < ", classes, " or ignore_index ",
             ignore_index, ", got ", y, " at row ", i);
  }

  const bool wide = params.new_logits.type == Element::float64;
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  const bool rows = Reduction(reduction) == Reduction::none;
  Tensor loss = rows ? empty({n}, dtype) : empty({}, dtype);
  Tensor statistics = empty({n, kRowStatistics}, ScalarType::Double);
  std::vector<double> parts(size_t(2 * n));
  params.statistics = mutable_pointer<double>(statistics);
  params.cross_entropy = parts.data();
  params.divergence = parts.data() + n;
  const DistillKernels& kernels = GF_CHOOSE_TABLE(distill);
  torch::stable::parallel_for(0, n, grain(classes),
                              [&](int64_t begin, int64_t end) { kernels.forward(params, begin, end); });

  // A weight of 0 takes its term out, even an infinite one. Sequential: the same bits for any number of threads.
  const double count = Reduction(reduction) == Reduction::mean ? double(std::max<int64_t>(1, counted)) : 1;
  const double scale_e = cross_entropy_weight / count, scale_d = distillation_weight / count;
  const auto write = [&](int64_t at, double value) {
    if (wide) {
      mutable_pointer<double>(loss)[at] = value;
    } else {
      mutable_pointer<float>(loss)[at] = float(value);
    }
  };
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    auto& row = reinterpret_cast<RowStatistics*>(params.statistics)[i];
    row.cross_entropy = scale_e == 0 ? 0 : row.cross_entropy * scale_e;
    row.distillation = scale_d == 0 ? 0 : row.distillation * scale_d;
    const double value = (scale_e == 0 ? 0 : params.cross_entropy[i] * cross_entropy_weight) +
                         (scale_d == 0 ? 0 : params.divergence[i] * distillation_weight);
    if (rows) {
      write(i, value);
    } else {
      total += value;
    }
  }
  if (!rows) write(0, total / count);
  return {loss, statistics};
}

Tensor backward(const Tensor& grad_output, const Tensor& new_logits, const Tensor& old_logits, const Tensor& target,
                const Tensor& statistics, int64_t divergence, double temperature, double label_smoothing) {
  const int64_t n = target.numel();
  DistillBackward params{logits(new_logits, "new_logits", n),
                         logits(old_logits, "old_logits", n),
                         targets(target),
                         pointer<double>(statistics),
                         grad_output.const_data_ptr(),
                         0,
                         nullptr,
                         DivergenceKind(divergence),
                         within_range(temperature),
                         label_smoothing};
  const bool wide = params.new_logits.type == Element::float64;
  GF_CHECK(grad_output.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float), "distill",
           "grad_output: expected the loss's dtype");
  GF_CHECK(grad_output.dim() == 0 || (grad_output.dim() == 1 && grad_output.size(0) == n), "distill",
           "grad_output: expected the loss's shape, () or (", n, ",)");
  GF_CHECK(statistics.numel() == n * kRowStatistics && statistics.scalar_type() == ScalarType::Double &&
               statistics.is_contiguous(),
           "distill", "statistics: expected what distill_forward returned for ", n, " rows");
  params.grad_output_stride = grad_output.dim() == 0 ? 0 : grad_output.stride(0);
  const int64_t classes = params.new_logits.columns;
  Tensor gradient = large_empty({n, classes}, new_logits.scalar_type(), new_logits.element_size());
  params.gradient = gradient.mutable_data_ptr();
  const DistillKernels& kernels = GF_CHOOSE_TABLE(distill);
  torch::stable::parallel_for(0, n, grain(classes),
                              [&](int64_t begin, int64_t end) { kernels.backward(params, begin, end); });
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) {
  m.impl("distill_forward", TORCH_BOX(&forward));
  m.impl("distill_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace graceful_fast
