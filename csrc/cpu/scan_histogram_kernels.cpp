// scan_histogram, the CPU kernels: the scan of all pairs with either ending, and the scores of given pairs.
#include "cpu/scan_histogram.h"
#include "cpu/scan_histogrammer.h"
#include "cpu/scan_sieve.h"

namespace graceful_fast {
namespace {

// Whether a task has pairs at all.
bool empty(const PairParams& p, const Task& task) {
  return task.query_begin == task.query_end || task.row_begin == task.row_end ||
         (p.within && task.row_end <= task.query_begin + 1);
}

void histogram(const HistogramParams& params, int64_t index, ScanReport& report) {
  const DefaultRounding rounding;
  const Task task(params, index);
  params.margins[index] = 0;
  if (empty(params, task)) return;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Scan<T, Histogrammer<T>> scan(params, task, report);
    if (scan.run()) params.margins[index] = scan.ending().finish();
  });
}

void between(const BetweenParams& params, int64_t index, ScanReport& report) {
  const DefaultRounding rounding;
  const Task task(params, index);
  if (empty(params, task)) return;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Scan<T, Sieve<T>> scan(params, task, report);
    if (scan.run()) scan.ending().finish();
  });
}

void pairs(const ScanParams& params, const int64_t* rows, const int64_t* columns, int64_t count, double* keys) {
  const DefaultRounding rounding;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Definition<T> definition(params);
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && rows[end] == rows[begin];) ++end;
      definition.choose(rows[begin]);
      definition.each(
          end - begin, [&](int64_t j) { return columns[begin + j]; },
          [&](int64_t j, Settled s) { keys[begin + j] = s.key; });
    }
  });
}

}  // namespace

extern const HistogramKernels GF_TABLE(scan_histogram) = {histogram, between, pairs};

}  // namespace graceful_fast
