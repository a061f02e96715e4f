// The host half of simt.cuh: a kernel's source, compiled by g++, runs on the CPU, one fiber per CUDA thread, and what
// it does is checked. How it works and how to read its messages: docs/development/simt.md.
#pragma once
#include <tuple>
#include <type_traits>

#include "arithmetic.h"
#include "control.h"
#include "memory.h"
#include "types.h"
#include "warp.h"

namespace simt::host {

// Constant for the whole life of a kernel's thread, so the compiler may keep them.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] uint3 block_size();
[[gnu::const]] uint3 grid_size();

struct Call {
  const char* name;
  dim3 grid, block;
  size_t shared_bytes;
  void (*run)(const void* bound);  // one thread's call of the kernel
  const void* bound;               // the kernel and its arguments
  size_t bound_bytes;
};
void launch(const Call& call);

}  // namespace simt::host

#define threadIdx ::simt::host::thread_index()
#define blockIdx ::simt::host::block_index()
#define blockDim ::simt::host::block_size()
#define gridDim ::simt::host::grid_size()
constexpr int warpSize = 32;

namespace simt {

using Stream = void*;

// One launch, finished when it returns; throws simt::Error with the first thing that is wrong. A grid of zero blocks is
// no launch.
template <typename... Params>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
            std::type_identity_t<Params>... params) {
  using Bound = std::tuple<void (*)(Params...), Params...>;
  const Bound bound(kernel, params...);
  const auto run = [](const void* bound) {
    std::apply([](auto kernel, const auto&... params) { kernel(params...); }, *static_cast<const Bound*>(bound));
  };
  host::launch({name, grid, block, shared_bytes, run, &bound, sizeof bound});
}

}  // namespace simt
