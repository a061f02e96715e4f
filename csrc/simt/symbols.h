// The line of the source behind an instruction.
#pragma once
#include <string>

namespace simt::host {

// "file:line" of the call before `pc`, with the lines it was inlined at; the library and offset where that is unknown.
std::string source_line(const void* pc);

}  // namespace simt::host
