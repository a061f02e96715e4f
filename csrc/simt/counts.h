// Bytes of global memory that the running launch has moved.
#pragma once
#include "checks.h"

namespace simt::host {

void counting_started(const char* kernel);
void count_access(checks::Access kind, size_t bytes);

}  // namespace simt::host
