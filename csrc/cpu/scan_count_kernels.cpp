// scan_count, the CPU kernel: the scan with its ending.
#include "cpu/scan_count.h"
#include "cpu/scan_counter.h"

namespace graceful_fast {
namespace {

void count(const CountParams& params, int64_t index, ScanReport& report) {
  const DefaultRounding rounding;
  const Task task(params, index);
  if (task.query_begin == task.query_end) return;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Scan<T, Counter<T>> scan(params, task, report);
    if (scan.run()) scan.ending().finish();
  });
}

}  // namespace

extern const CountKernels GF_TABLE(scan_count) = {count};

}  // namespace graceful_fast
