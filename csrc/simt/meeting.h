// Where the lanes of a warp meet.
#pragma once
#include "machine.h"

namespace simt::host {

// Waits until every lane of the mask has come to the same operation at the same place; the last to come calls complete.
// only_live (__syncwarp): lanes that have exited are not waited for, and places may differ.
void meet(const char* name, unsigned mask, void* request, Site site, Meeting::Complete* complete,
          bool only_live = false);

// A thread is about to exit: nobody may wait for it but in __syncwarp.
void lane_exits(const Thread& thread);

}  // namespace simt::host
