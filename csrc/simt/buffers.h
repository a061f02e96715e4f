// Global memory: the buffers that kernels may touch.
#pragma once
#include <string>

#include "control.h"
#include "shadow.h"

namespace simt::host {

struct GlobalMemory {
  uintptr_t begin, end;
  std::string name;
  bool initialised;
  int owners;  // Buffer objects that lie in it
  Shadow shadow;
};

// The piece of global memory that holds an address; null where there is none.
GlobalMemory* global_memory_at(uintptr_t address);
// Where an address lies that is in none, for a message.
std::string describe_unknown(uintptr_t address);
// Constants of the program (tables, literals) may be read without being registered.
bool is_constant_data(uintptr_t begin, uintptr_t end);

}  // namespace simt::host
