// Large outputs in memory that was used before: writing 200 MB into fresh pages costs several times the writing itself.
#pragma once
#include "cpu/bind.h"

namespace graceful_fast {

// As `empty`; from 4 MiB on its memory comes from, and returns to, a few blocks that are kept. All but the one that
// came back last are marked so that the system takes their pages when it needs memory. Needs torch 2.13; with an older
// one it is `empty`.
Tensor large_empty(std::initializer_list<int64_t> shape, ScalarType dtype, size_t element_size);

}  // namespace graceful_fast
