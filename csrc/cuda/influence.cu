// influence: the launcher.
#include "kernels/influence.cuh"

namespace graceful_fast {
namespace {

template <class S, bool held>
void launch(const InfluenceParams& p, void* stream) {
  simt::launch("influence", influence<S, held>, dim3(unsigned(p.rows)), dim3(kInfluenceThreads),
               simt::SmemBytes().take<double>(kInfluenceThreads / kWarp).bytes, stream, p);
}
template <class S>
void launch(const InfluenceParams& p, void* stream) {
  p.classes <= kInfluenceHeld<S> ? launch<S, true>(p, stream) : launch<S, false>(p, stream);
}

}  // namespace

void launch_influence(const InfluenceParams& p, void* stream) {
  p.type == Element::float64 ? launch<double>(p, stream) : launch<float>(p, stream);
}

}  // namespace graceful_fast
