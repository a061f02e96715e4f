// Runs the CPU kernels of one build on random data and compares them with the definitions: for instruction sets and
// vector widths that this machine does not choose, or does not have (test_kernels.py). Prints what differs; exit
// code 1.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/distill.h"
#include "cpu/scan.h"
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
  }
  for (const DivergenceKind kind : {DivergenceKind::kl, DivergenceKind::logits}) {
    for (const double temperature : {0.5, 4.0, 100.0}) {
      for (const int64_t classes : {1, 15, 33, 1024, 3001}) check_distill(4, classes, temperature, kind);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
