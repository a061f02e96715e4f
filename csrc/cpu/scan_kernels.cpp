// scan, the CPU kernels: the engine (scan_engine.h) with each ending.
#include "cpu/scan.h"
#include "cpu/scan_collect.h"
#include "cpu/scan_engine.h"

namespace graceful_fast {
namespace {

void collect(const CollectParams& params, int64_t index, ScanReport& report) {
  const DefaultRounding rounding;
  const Task task(params, index);
  if (task.query_begin == task.query_end) return;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Scan<T, Collector<T>> scan(params, task, report);
    if (scan.run()) scan.ending().finish();
  });
}

void trim_query(const CollectParams& params, int64_t query) {
  const DefaultRounding rounding;
  trim(params, query);
}

void settle(const CollectParams& params, int64_t begin, int64_t end, ScanReport& report) {
  const DefaultRounding rounding;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Settlement<T> settlement(params, report);
    for (int64_t query = begin; query < end; ++query) settlement.settle(query);
  });
}

int64_t quantize(const Matrix& matrix, int64_t begin, int64_t end, int8_t* codes, float* facts, Fault& fault) {
  const DefaultRounding rounding;
  const int64_t stride = code_stride(matrix.columns);
  Buffer<float> scaled(stride);
  return with_elements(matrix, [&](const auto* data) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* x = data + row * matrix.row_stride;
      const double squared = squared_norm(x, matrix.columns);
      fault = fault_of(x, matrix.columns, squared, Metric::ip);
      if (fault != Fault::none) return row;
      const double scale = scale_of(squared), norm = __builtin_sqrt(squared) * (1 + 0x1p-22);
      float residual;
      scale_row(x, matrix.columns, scale, scaled, stride);
      const float step = quantize_row(scaled, stride, kRowLevels, codes + row * stride, residual);
      float* const to = facts + row * kFacts;
      const bool usable = squared == 0 || (norm > 0x1p-90 && norm < 0x1p90);
      to[0] = usable ? float(step / scale) : 0;
      to[1] = usable ? float(residual / scale * (1 + 0x1p-22)) : 0;
      to[2] = usable ? float(norm * (1 + 0x1p-23)) : __builtin_inff();
    }
    return int64_t(-1);
  });
}

}  // namespace

extern const ScanKernels GF_TABLE(scan) = {typical_scale, typical_scale_of_codes, collect, trim_query, settle,
                                           quantize};

}  // namespace graceful_fast
