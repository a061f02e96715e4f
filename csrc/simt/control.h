// The emulator's face to those who launch kernels: what memory there is, in which order threads run, what happened.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

// What launch() throws: kernel, block, thread, array, byte and line of the first thing that is wrong.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { ascending, descending, random };

// The order in which threads and blocks run from the next launch on. Ascending and descending finish what a warp can do
// before the next warp starts; random lets warps race ahead by bursts and also stops threads between any two accesses.
void set_schedule(Order order, uint64_t seed = 0);

// Global memory that kernels may touch, while this object lives; any other access is reported. Buffers may overlap:
// they are then one piece of memory.
class Buffer {
 public:
  enum class Contents { initialised, uninitialised };
  Buffer(std::string name, const void* begin, size_t bytes, Contents contents);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer();

 private:
  const void* begin_ = nullptr;
  size_t bytes_ = 0;
};

// Bytes of global memory that the threads of one launch asked for, one by one (a broadcast counts once a thread).
struct Counts {
  std::string kernel;
  uint64_t read, written, atomic;
};
// Of the launches since the last call, in order.
std::vector<Counts> take_counts();

}  // namespace simt
