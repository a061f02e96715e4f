// Runs the CPU kernels of one build on random data and compares them with the definitions: for instruction sets and
// vector widths that this machine does not choose, or does not have (test_kernels.py). Prints what differs; exit
// code 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/distill.h"
#include "cpu/scan.h"
#include "cpu/scan_count.h"
#include "cpu/scan_histogram.h"
#include "math/row_statistics.h"
#include "math/settle.h"

using namespace graceful_fast;

namespace {

int failures = 0;
std::mt19937_64 generator(1);

std::vector<float> normal(int64_t count, float scale) {
  std::normal_distribution<float> draw;
  std::vector<float> values(count);
  for (float& value : values) value = scale * draw(generator);
  return values;
}

Matrix matrix(const std::vector<float>& values, int64_t rows, int64_t columns) {
  return {values.data(), columns, rows, columns, Element::float32};
}

double definition(const float* q, const float* x, int64_t dim, Metric metric) {
  std::vector<double> wide(dim + 8, 0.0);
  for (int64_t i = 0; i < dim; ++i) wide[i] = q[i];
  if (metric == Metric::l2) return -squared_distance(wide.data(), x, dim);
  const double product = inner_product(wide.data(), x, dim);
  if (metric == Metric::ip) return product;
  return product / (std::sqrt(squared_norm(q, dim)) * std::sqrt(squared_norm(x, dim)));
}

void check_scan(int64_t count, int64_t rows, int64_t dim, int64_t k, Metric metric, bool coded) {
  const std::vector<float> queries = normal(count * dim, 1);
  std::vector<float> gallery = normal(rows * dim, 1);
  for (int64_t i = 0; i < dim; ++i) gallery[(rows - 1) * dim + i] = gallery[i];  // a tie, far apart
  CollectParams params{};
  params.queries = matrix(queries, count, dim);
  params.gallery = matrix(gallery, rows, dim);
  params.dim = dim, params.k = k, params.metric = metric, params.query_parts = 2, params.gallery_parts = 3;
  params.gallery_scale = params.query_scale = scan_baseline.typical_scale(params.gallery, dim);
  params.coded = coded;
  params.capacity = 2 * k + 32;
  std::vector<double> floor(count, -std::numeric_limits<double>::infinity()), scores(count * k);
  std::vector<Candidate> candidates(count * 3 * params.capacity);
  std::vector<int64_t> counts(count * 3), indices(count * k, -1);
  params.floor = floor.data(), params.candidates = candidates.data(), params.counts = counts.data();
  params.keys = scores.data(), params.rows = indices.data();
  ScanReport report;
  for (int64_t task = 0; task < 6; ++task) scan_baseline.collect(params, task, report);
  for (int64_t q = 0; q < count; ++q) scan_baseline.trim(params, q);
  scan_baseline.settle(params, 0, count, report);
  for (int64_t q = 0; q < count; ++q) {
    std::vector<double> all(rows);
    for (int64_t i = 0; i < rows; ++i) all[i] = definition(&queries[q * dim], &gallery[i * dim], dim, metric);
    std::vector<bool> taken(rows);
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t i = 0; i < rows; ++i) {
        if (!taken[i] && (best < 0 || all[i] > all[best])) best = i;
      }
      taken[best] = true;
      const double score = all[best];
      if (indices[q * k + j] != best || !(scores[q * k + j] == score)) {
        std::printf("scan %ld x %ld x %ld metric %d %s, query %ld, place %ld: row %ld score %.17g, expected %ld %.17g\n",
                    long(count), long(rows), long(dim), int(metric), coded ? "codes" : "float32", long(q), long(j), long(indices[q * k + j]),
                    scores[q * k + j], long(best), score);
        ++failures;
        return;
      }
    }
  }
}

void expect(bool good, const char* what, int64_t count, int64_t dim, Metric metric, int64_t place) {
  if (good) return;
  std::printf("%s of %ld queries, dim %ld, metric %d: wrong at %ld\n", what, long(count), long(dim), int(metric),
              long(place));
  ++failures;
}

// Queries x rows with ties, and the definition of each score.
struct Pairs {
  std::vector<float> queries, gallery;
  std::vector<double> keys;  // [count, rows]

  Pairs(ScanParams& params, int64_t count, int64_t rows, int64_t dim, Metric metric)
      : queries(normal(count * dim, 1)), gallery(normal(rows * dim, 1)), keys(count * rows) {
    std::copy_n(gallery.begin(), rows / 4 * dim, gallery.begin() + rows / 2 * dim);
    params.queries = matrix(queries, count, dim);
    params.gallery = matrix(gallery, rows, dim);
    params.dim = dim, params.metric = metric, params.query_parts = 2, params.gallery_parts = 3;
    params.gallery_scale = params.query_scale = scan_baseline.typical_scale(params.gallery, dim);
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t i = 0; i < rows; ++i) {
        keys[q * rows + i] = definition(&queries[q * dim], &gallery[i * dim], dim, metric);
      }
    }
  }
};

// Every fifth query has no positives, others up to `most`.
void check_count(int64_t count, int64_t rows, int64_t dim, int64_t most, Metric metric) {
  CountParams params{};
  const Pairs pairs(params, count, rows, dim, metric);
  std::vector<int64_t> start{0}, positives;
  std::vector<double> keys;
  for (int64_t q = 0; q < count; ++q) {
    const double* const key = &pairs.keys[q * rows];
    std::vector<int64_t> mine(q % 5 == 4 ? 0 : 1 + most * (q % 5) / 4);
    for (int64_t& row : mine) row = int64_t(generator() % rows);
    std::sort(mine.begin(), mine.end());
    mine.erase(std::unique(mine.begin(), mine.end()), mine.end());
    std::stable_sort(mine.begin(), mine.end(), [&](int64_t a, int64_t b) { return key[a] > key[b]; });
    for (const int64_t row : mine) positives.push_back(1000 + row), keys.push_back(key[row]);
    start.push_back(int64_t(positives.size()));
  }
  const int64_t p = int64_t(positives.size()), size = 3 * p + count;
  std::vector<int64_t> tallies(3 * size);
  params.first_row = 1000;
  params.start = start.data(), params.keys = keys.data(), params.rows = positives.data();
  params.tallies = tallies.data();
  ScanReport report;
  for (int64_t task = 0; task < 6; ++task) scan_count_baseline.count(params, task, report);
  for (int64_t i = 0; i < size; ++i) tallies[i] += tallies[size + i] + tallies[2 * size + i];
  for (int64_t q = 0; q < count; ++q) {
    int64_t better = 0, before = 0;  // up to this place; before: of this key
    for (int64_t j = start[q]; j < start[q + 1]; ++j) {
      const bool first = j == start[q] || keys[j] != keys[j - 1];
      if (first && j > start[q]) {
        int64_t equal = 0;
        for (int64_t i = 0; i < rows; ++i) equal += pairs.keys[q * rows + i] == keys[j - 1];
        better += equal;
      }
      better += first ? tallies[j + q] : 0;
      before = (first ? 0 : before) + tallies[2 * p + count + j];
      int64_t greater = 0, equal = 0, smaller = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const double key = pairs.keys[q * rows + i];
        greater += key > keys[j];
        equal += key == keys[j];
        smaller += key == keys[j] && 1000 + i < positives[j];
      }
      const bool good = better == greater && before == smaller && (!first || tallies[p + count + j] == equal);
      expect(good, "count", count, dim, metric, j);
      if (!good) return;
    }
  }
}

// Bins that are exact but for pairs at their edges; the sieve has no such slack.
void check_histogram(int64_t count, int64_t rows, int64_t dim, Metric metric) {
  constexpr int64_t kBins = 64;
  HistogramParams params{};
  const Pairs pairs(params, count, rows, dim, metric);
  std::vector<int32_t> labels[2];
  for (int64_t i = 0; i < count; ++i) labels[0].push_back(int32_t(generator() % 4));
  for (int64_t i = 0; i < rows + kPadding; ++i) labels[1].push_back(int32_t(generator() % 4));
  std::vector<int64_t> counts(2 * kBins), which(count * rows);
  std::vector<uint8_t> kinds(count * rows);
  std::vector<float> places(count * rows);
  std::vector<double> margins(6), sorted = pairs.keys, kept_keys(count * rows);
  std::sort(sorted.begin(), sorted.end());
  int64_t kept = 0;
  const int64_t range[2] = {kBins / 2, kBins / 2 + 3};
  params.query_labels = labels[0].data(), params.row_labels = labels[1].data();
  params.bins = kBins, params.counts = counts.data(), params.kinds = kinds.data();
  params.capacity = count * rows, params.kept = &kept;
  params.origin = sorted.front(), params.width = (sorted.back() - sorted.front()) / kBins;
  params.places = places.data(), params.pairs = which.data(), params.margins = margins.data();
  params.ranges = range, params.range_count = 1;
  ScanReport report;
  for (int64_t task = 0; task < 6; ++task) scan_histogram_baseline.histogram(params, task, report);
  const double margin = *std::max_element(margins.begin(), margins.end());
  expect(margin < 0.1, "margin", count, dim, metric, 0);
  const auto place = [&](int64_t pair) { return (pairs.keys[pair] - params.origin) / params.width; };
  const auto genuine = [&](int64_t pair) { return labels[0][pair / rows] == labels[1][pair % rows]; };
  for (int64_t bin = 0; bin < kBins; ++bin) {
    int64_t surely[2] = {}, perhaps[2] = {};
    for (int64_t pair = 0; pair < count * rows; ++pair) {
      const double low = bin == 0 ? -INFINITY : double(bin), high = bin == kBins - 1 ? INFINITY : double(bin + 1);
      surely[genuine(pair)] += place(pair) >= low + margin && place(pair) < high - margin;
      perhaps[genuine(pair)] += place(pair) >= low - margin && place(pair) < high + margin;
    }
    for (int kind = 0; kind < 2; ++kind) {
      const int64_t found = counts[kind * kBins + bin];
      expect(surely[kind] <= found && found <= perhaps[kind], "histogram", count, dim, metric, bin);
    }
  }
  int64_t in_range = 0;
  for (int64_t bin = range[0]; bin <= range[1]; ++bin) in_range += counts[bin] + counts[kBins + bin];
  expect(kept == in_range, "kept", count, dim, metric, kept);
  for (int64_t i = 0; i < kept; ++i) {
    const bool good = std::fabs(places[i] - place(which[i])) <= margin && kinds[i] == genuine(which[i]);
    expect(good, "kept pair", count, dim, metric, i);
  }

  // The pairs between two scores, the middle half of all.
  BetweenParams between{};
  static_cast<PairParams&>(between) = params;
  const double low = sorted[sorted.size() / 4];
  std::memcpy(&between.lowest, &low, sizeof low);
  if (between.lowest < 0) between.lowest = std::numeric_limits<int64_t>::min() - between.lowest;
  between.shift = 50, between.keys = kept_keys.data();
  std::fill(counts.begin(), counts.end(), 0);
  kept = 0;
  for (int64_t task = 0; task < 6; ++task) scan_histogram_baseline.between(between, task, report);
  int64_t below[2] = {};
  for (int64_t pair = 0; pair < count * rows; ++pair) below[genuine(pair)] += pairs.keys[pair] < low;
  std::vector<double> settled(kept_keys.begin(), kept_keys.begin() + kept);
  std::sort(settled.begin(), settled.end());
  for (int kind = 0; kind < 2; ++kind) {
    expect(counts[kind * kBins] == below[kind], "between", count, dim, metric, counts[kind * kBins]);
  }
  const int64_t first = below[0] + below[1];
  expect(kept > 0 && std::equal(settled.begin(), settled.end(), sorted.begin() + first), "between keys", count, dim,
         metric, kept);
}

void check_distill(int64_t rows, int64_t classes, double temperature, DivergenceKind kind) {
  const std::vector<float> old_logits = normal(rows * classes, 3);
  std::vector<float> new_logits = normal(rows * classes, 1), gradient(rows * classes);
  for (size_t i = 0; i < new_logits.size(); ++i) new_logits[i] += old_logits[i];
  std::vector<int64_t> target(rows);
  for (int64_t i = 0; i < rows; ++i) target[i] = int64_t(generator() % classes);
  std::vector<double> statistics(rows * kRowStatistics), loss_of(rows);
  DistillRows both{};
  both.new_logits = matrix(new_logits, rows, classes), both.old_logits = matrix(old_logits, rows, classes);
  both.pairs = classes, both.target = target.data(), both.ignore_index = -100;
  both.kind = kind, both.temperature = temperature;
  std::vector<RowPart> parts(rows);
  distill_baseline.accumulate({both, false, reinterpret_cast<double*>(parts.data())}, 0, rows);
  const LossRule rule{kind, Focus::all, 1, 0, temperature, 0, double(classes), 1, 1};
  for (int64_t i = 0; i < rows; ++i) {
    RowStatistics& row = reinterpret_cast<RowStatistics*>(statistics.data())[i];
    loss_of[i] = finish_row(parts[i], rule, 0, row);
  }
  const float incoming = 1;
  DistillBackward backward{};
  backward.rows = both, backward.statistics = statistics.data(), backward.grad_output = &incoming;
  backward.gradient = gradient.data(), backward.gradient_stride = classes, backward.classes = double(classes);
  distill_baseline.backward(backward, 0, rows);
  for (int64_t i = 0; i < rows; ++i) {
    const float *s = &new_logits[i * classes], *t = &old_logits[i * classes];
    double sum = 0, new_sum = 0, old_sum = 0, kl = 0, squares = 0;
    for (int64_t j = 0; j < classes; ++j) {
      sum += std::exp(double(s[j]));
      new_sum += std::exp(s[j] / temperature);
      old_sum += std::exp(t[j] / temperature);
    }
    for (int64_t j = 0; j < classes; ++j) {
      const double p = std::exp(t[j] / temperature) / old_sum, q = std::exp(s[j] / temperature) / new_sum;
      kl += p * std::log(p / q);
      squares += (double(s[j]) - t[j]) * (double(s[j]) - t[j]) / 2 / double(classes);
    }
    const double loss = std::log(sum) - s[target[i]];
    const double distance = kind == DivergenceKind::kl ? temperature * temperature * kl : squares;
    bool good = std::fabs(loss_of[i] - loss - distance) <= 4e-6 * (1 + loss + distance);
    for (int64_t j = 0; j < classes && good; ++j) {
      const double p = std::exp(t[j] / temperature) / old_sum, q = std::exp(s[j] / temperature) / new_sum;
      const double part = kind == DivergenceKind::kl ? temperature * (q - p) : (double(s[j]) - t[j]) / double(classes);
      good = std::fabs(gradient[i * classes + j] - (std::exp(double(s[j])) / sum - (j == target[i]) + part)) <= 2e-6;
    }
    if (!good) {
      std::printf("distill %ld x %ld T %g kind %d, row %ld: %.9g, expected %.9g + %.9g, or its gradient\n", long(rows),
                  long(classes), temperature, int(kind), long(i), loss_of[i], loss, distance);
      ++failures;
      return;
    }
  }
}

}  // namespace

int main() {
  for (const Metric metric : {Metric::ip, Metric::l2, Metric::cosine}) {
    for (const int64_t dim : {1, 7, 128, 130}) {
      check_scan(3, 2000, dim, 5, metric, false);  // few queries: rows are scanned where they lie
      for (const bool coded : {false, true}) check_scan(45, 2000, dim, 5, metric, coded);  // the last tiles not full
    }
    for (const int64_t count : {3, 45}) {
      for (const int64_t most : {20, 31, 200}) check_count(count, 1500, 24, most, metric);
      check_histogram(count, 1500, 24, metric);
    }
  }
  for (const DivergenceKind kind : {DivergenceKind::kl, DivergenceKind::logits}) {
    for (const double temperature : {0.5, 4.0, 100.0}) {
      for (const int64_t classes : {1, 15, 33, 1024, 3001}) check_distill(4, classes, temperature, kind);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
