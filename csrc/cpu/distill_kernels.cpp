// distill, the CPU kernel: statistics of a row forward, its gradient backward; formulas in math/row_statistics.h.
// Memory is read once each way and nothing of size (B, C) is stored but the gradient.
#include <type_traits>

#include "cpu/distill.h"
#include "cpu/distill_backward.h"
#include "cpu/distill_forward.h"
#include "cpu/rounding.h"

namespace graceful_fast {
namespace {

void accumulate(const DistillAccumulate& params, int64_t begin, int64_t end) {
  const DefaultRounding rounding;
  const auto run = [&](auto row) {
    for (int64_t i = begin; i < end; ++i) row(params, i);
  };
  if (computes_in_float64(params.rows)) return run(accumulate_row<double, double>);
  if (params.rows.old_logits.type != params.rows.new_logits.type) return run(accumulate_row<Floats, float>);
  with_type(params.rows.new_logits.type, [&](auto in) {
    if constexpr (!std::is_same_v<decltype(in), double>) run(accumulate_row<Floats, decltype(in)>);
  });
}

void backward(const DistillBackward& params, int64_t begin, int64_t end) {
  const DefaultRounding rounding;
  with_type(params.rows.new_logits.type, [&](auto out) {
    using Out = decltype(out);
    const auto run = [&](auto row) {  // last rows first: forward has left them in the caches
      for (int64_t i = end; i-- > begin;) row(params, i);
    };
    if (computes_in_float64(params.rows)) return run(backward_row<double, Out, double>);
    if constexpr (!std::is_same_v<Out, double>) {
      if (params.rows.old_logits.type == params.rows.new_logits.type) return run(backward_row<Floats, Out, Out>);
      run(backward_row<Floats, Out, float>);
    }
  });
  if (params.past_caches) fence();
}

}  // namespace

extern const DistillKernels GF_TABLE(distill) = {accumulate, backward};

}  // namespace graceful_fast
