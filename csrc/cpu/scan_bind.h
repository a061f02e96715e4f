// What the bindings of all endings share: tensors to ScanParams, reports to the status that Python reads.
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/bind.h"
#include "cpu/scan.h"

namespace graceful_fast {

constexpr int64_t kStatus = 8;

inline const int64_t* labels(const std::optional<Tensor>& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == count && tensor->scalar_type() == ScalarType::Long &&
               tensor->is_contiguous(),
           "scan", name, ": expected a contiguous int64 vector of ", count);
  return pointer<int64_t>(*tensor);
}

// What all endings' ops check and choose alike.
inline void use_queries(ScanParams& params, const ScanKernels& kernels, const Tensor& queries, int64_t metric) {
  params.queries = matrix(queries, "scan", "queries");
  params.dim = params.queries.columns;
  GF_CHECK(params.dim >= 1 && params.gallery.columns == params.dim, "scan",
           "expected (Q, dim) and (N, dim) with dim at least 1, got dims ", params.dim, " and ",
           params.gallery.columns);
  GF_CHECK(metric >= 0 && metric <= 2, "scan", "metric: expected 0 (ip), 1 (l2) or 2 (cosine), got ", metric);
  params.metric = Metric(metric);
  params.gallery_scale = params.gallery.data ? kernels.typical_scale(params.gallery, params.dim)
                                             : kernels.typical_scale_of_codes(params.codes, params.gallery.rows);
  if (params.metric == Metric::l2) {
    params.gallery_scale = std::min(params.gallery_scale, kernels.typical_scale(params.queries, params.dim));
    params.query_scale = params.gallery_scale;
  }
}

// status[0..3]: the bad argument (1 queries, 2 gallery) or 0, its first bad row, the fault, rows settled in float64;
// [4..6]: buffers cut, rows scanned as codes, rows scanned in float32; [7]: 1 where a
// deferred scan gave up.
// The first bad query goes before the first bad gallery row, whichever task saw it.
inline void write_status(const std::vector<ScanReport>& reports, int64_t* status) {
  int64_t bad_query = -1, bad_row = -1;
  for (const ScanReport& report : reports) {
    status[3] += report.settled;
    status[4] += report.cuts;
    status[5] += report.coded_rows;
    status[6] += report.plain_rows;
    status[7] |= report.overflow;
    if (report.query >= 0 && (bad_query < 0 || report.query < bad_query)) {
      bad_query = report.query;
      status[0] = 1, status[1] = report.query, status[2] = int64_t(report.query_fault);
    }
    if (report.row >= 0 && (bad_row < 0 || report.row < bad_row)) {
      bad_row = report.row;
      if (bad_query < 0) status[0] = 2, status[1] = report.row, status[2] = int64_t(report.row_fault);
    }
  }
}

inline Tensor new_status() {
  Tensor status = empty({kStatus}, ScalarType::Long);
  std::fill_n(mutable_pointer<int64_t>(status), kStatus, 0);
  return status;
}

}  // namespace graceful_fast
