// distill: the launchers.
#include <algorithm>
#include <type_traits>

#include "kernels/distill_backward.cuh"
#include "kernels/distill_finish.cuh"
#include "kernels/distill_forward.cuh"

namespace graceful_fast {
namespace {

template <class NewType, class OldType, class Number, bool is_kl>
struct Kernel {
  using New = NewType;
  using Old = OldType;
  using S = Number;
  static constexpr bool kl = is_kl;
};

// use(Kernel): the element types as constants where both models have the same, else the slower way. Float64 logits of
// either model are not rounded before they are compared or subtracted.
template <class Use>
auto with_kernel(const DistillLogits& logits, Use use) {
  const auto with_kind = [&](auto new_element, auto old_element, auto number) {
    using New = decltype(new_element);
    using Old = decltype(old_element);
    using S = decltype(number);
    return logits.kind == DivergenceKind::kl ? use(Kernel<New, Old, S, true>{}) : use(Kernel<New, Old, S, false>{});
  };
  const bool wide = logits.new_logits.type == Element::float64 || logits.old_logits.type == Element::float64;
  return with_type(logits.new_logits.type, [&](auto element) {
    using New = decltype(element);
    using Number = decltype(widen(New{}));
    if (logits.new_logits.type == logits.old_logits.type) return with_kind(New{}, New{}, Number{});
    return wide ? with_kind(New{}, Mixed{}, double{}) : with_kind(New{}, Mixed{}, Number{});
  });
}

unsigned blocks(int64_t items, int64_t a_block) { return unsigned((items + a_block - 1) / a_block); }
constexpr int kWarpsOfParts = kPartsThreads / int(kWarp), kRowsOfFinish = kFinishThreads / int(kWarp);

}  // namespace

int64_t distill_tile(const DistillLogits& logits) {
  return with_kernel(logits, [](auto kernel) { return int64_t(kTile<typename decltype(kernel)::S>); });
}

void launch_distill_parts(const DistillParts& p, void* stream) {
  with_kernel(p.logits, [&](auto k) {
    using K = decltype(k);
    simt::launch("distill_parts", distill_parts<typename K::New, typename K::Old, typename K::S, K::kl>,
                 dim3(blocks(p.logits.new_logits.rows * p.splits, kWarpsOfParts)), dim3(kPartsThreads), 0, stream, p);
  });
}

void launch_distill_merge(const DistillMerge& p, double* merged, void* stream) {
  simt::launch("distill_merge", distill_merge, dim3(blocks(p.rows, kRowsOfFinish)), dim3(kFinishThreads), 0, stream, p,
               merged);
}

void launch_distill_finish(const DistillFinish& p, void* stream) {
  simt::launch("distill_finish", distill_finish, dim3(blocks(p.merge.rows, kRowsOfFinish)), dim3(kFinishThreads), 0,
               stream, p);
  if (p.reduction == Reduction::none) return;
  simt::launch("distill_reduce", distill_reduce, dim3(1), dim3(kReduceThreads),
               simt::SmemBytes().take<double>(kReduceThreads / kWarp).bytes, stream, p);
}

void launch_distill_backward(const DistillBackward& p, void* stream) {
  with_kernel(p.logits, [&](auto k) {
    using K = decltype(k);
    const int64_t chunks = blocks(p.logits.new_logits.columns + kGroup - 1, kChunk);
    simt::launch("distill_backward", distill_backward<typename K::New, typename K::Old, typename K::S, K::kl>,
                 dim3(unsigned(p.logits.new_logits.rows * chunks)), dim3(kBackwardThreads),
                 simt::SmemBytes().take<Factors>(1).bytes, stream, p, chunks);
  });
}

void launch_distill_columns(const int64_t* new_column, const int64_t* old_column, int64_t pairs, int64_t columns,
                            int64_t* out, void* stream) {
  simt::launch("distill_columns", distill_columns, dim3(blocks(columns, kFinishThreads)), dim3(kFinishThreads), 0,
               stream, new_column, old_column, pairs, columns, out);
}

}  // namespace graceful_fast
