// scan_count, the CPU kernels: positives sorted, the scan with its ending, tallies to counts.
#include "cpu/scan_count.h"
#include "cpu/scan_counter.h"

namespace graceful_fast {
namespace {

void sort(const CountParams& p, int64_t begin, int64_t end) {
  const DefaultRounding rounding;
  with_elements(p.gallery, [&]<class T>(const T*) {
    Definition<T> definition(p);
    int64_t largest = 0;
    for (int64_t i = begin; i < end; ++i) largest = most(largest, p.start[i + 1] - p.start[i]);
    Buffer<double> keys(largest);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = p.start[i], count = p.start[i + 1] - at;
      definition.choose(i);
      for (int64_t j = 0; j < count; ++j) {
        keys[j] = definition.key(p.positives[at + j]);
        if (!(keys[j] == keys[j])) keys[j] = 0;  // bad data is the scan's to report; an order needs numbers
        p.places[at + j] = j;
      }
      std::sort(p.places + at, p.places + at + count, [&](int64_t a, int64_t b) {
        return keys[a] > keys[b] || (keys[a] == keys[b] && p.positives[at + a] < p.positives[at + b]);
      });
      for (int64_t j = 0; j < count; ++j) {
        p.keys[at + j] = keys[p.places[at + j]];
        p.rows[at + j] = p.positives[at + p.places[at + j]];
      }
    }
  });
}

void count(const CountParams& params, int64_t index, ScanReport& report) {
  const DefaultRounding rounding;
  const Task task(params, index);
  if (task.query_begin == task.query_end) return;
  with_elements(params.gallery, [&]<class T>(const T*) { Scan<T, Counter<T>>(params, task, report).run(); });
}

void finish(const CountParams& p, int64_t begin, int64_t end) {
  const DefaultRounding rounding;
  const int64_t positives = p.start[p.queries.rows];
  with_elements(p.gallery, [&]<class T>(const T*) {
    Definition<T> definition(p);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = p.start[i], count = p.start[i + 1] - at;
      if (count == 0) continue;
      const double* const keys = p.keys + at;
      Tally tally(p, i, 0);
      for (int64_t part = 1; part < p.gallery_parts; ++part) {
        const Tally other(p, i, part);
        for (int64_t j = 0; j < count; ++j) {
          tally.between[j] += other.between[j];
          tally.equal[j] += other.equal[j];
          tally.before[j] += other.before[j];
        }
      }
      definition.choose(i);
      for (int64_t j = p.excluded_start[i]; j < p.excluded_start[i + 1]; ++j) {
        tally.add(keys, p.rows + at, count, definition.key(p.excluded[j]), p.excluded[j], -1);
      }
      int64_t greater = 0, equal = 0, before = 0;  // of the positives of one key
      for (int64_t j = 0; j < count; ++j) {
        if (j == 0 || keys[j] != keys[j - 1]) {
          greater += equal + tally.between[j];
          equal = tally.equal[j];
          before = 0;
        }
        before += tally.before[j];
        int64_t* const out = p.counts + at + p.places[at + j];
        out[0] = greater;
        out[positives] = equal;
        out[2 * positives] = before;
      }
    }
  });
}

}  // namespace

extern const CountKernels GF_TABLE(scan_count) = {sort, count, finish};

}  // namespace graceful_fast
