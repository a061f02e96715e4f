// _C: what is no tensor op: build facts, loading the op library, the choice of instruction set, reading gallery files.
// No torch header here: torch bundles a pybind11 of its own and the two must not meet in one translation unit.
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <future>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "reader.h"

namespace py = pybind11;

namespace {

// Loads the op library (its static initialisers register the ops with torch) and settles the instruction set.
std::string load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw py::import_error(std::string("graceful_fast: ") + dlerror());
  using Choose = const char* (*)(const char*, char*, size_t);
  const auto choose = reinterpret_cast<Choose>(dlsym(library, "graceful_fast_choose_isa"));
  if (!choose) throw py::import_error("graceful_fast: " + path + " is no op library of graceful_fast");
  const char* wanted = std::getenv("GRACEFUL_FAST_ISA");
  if (wanted && !*wanted) wanted = nullptr;
  char available[128];
  const char* name = choose(wanted, available, sizeof available);
  if (!name) {
    throw py::value_error("GRACEFUL_FAST_ISA: expected one of " + std::string(available) +
                          " (what this CPU has), got '" + wanted + "'");
  }
  return name;
}

using Files = std::vector<std::tuple<py::bytes, int64_t, int64_t, int64_t>>;  // path, offset, stride, rows

std::vector<gf::RowFile> row_files(const Files& files) {
  std::vector<gf::RowFile> out;
  for (const auto& [path, offset, stride, rows] : files) out.push_back({std::string(path), offset, stride, rows});
  return out;
}

// A BlockReader, its files, and the hold on its buffers.
class Reader {
 public:
  Reader(const Files& files, int64_t row_bytes, const std::array<py::buffer, 2>& buffers, int64_t start, int64_t stop,
         std::optional<int32_t> dim_word)
      : buffers_{buffers[0].request(true), buffers[1].request(true)},
        files_(row_files(files), row_bytes, dim_word, true),
        reader_(files_, {data(0), data(1)}, std::min(bytes(0), bytes(1)) / row_bytes, start, stop) {}

  std::optional<std::tuple<int64_t, int64_t, int64_t>> next() {
    for (;;) {
      bool ready;
      {
        py::gil_scoped_release release;
        reader_.give_back();
        ready = reader_.ready(std::chrono::milliseconds(100));
      }
      if (ready) break;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // a slow disk does not hold up an interrupt
    }
    const auto block = reader_.next();
    if (!block) return std::nullopt;
    return std::tuple(block->slot, block->first, block->rows);
  }

  void close() {
    py::gil_scoped_release release;
    reader_.close();
  }

 private:
  std::byte* data(int slot) const { return static_cast<std::byte*>(buffers_[slot].ptr); }
  int64_t bytes(int slot) const { return buffers_[slot].size * buffers_[slot].itemsize; }

  std::array<py::buffer_info, 2> buffers_;
  gf::RowFiles files_;
  gf::BlockReader reader_;  // last: its thread ends before what it writes to
};

void read_rows(const Files& files, int64_t row_bytes, const py::array_t<int64_t, py::array::c_style>& rows,
               py::buffer out, std::optional<int32_t> dim_word) {
  const std::vector<gf::RowFile> list = row_files(files);
  gf::RowFiles source(list, row_bytes, dim_word, false);
  const py::buffer_info info = out.request(true);
  const int64_t count = rows.size();
  const int64_t* row = rows.data();
  if (info.size * info.itemsize < count * row_bytes) throw py::value_error("out: expected room for all rows");
  for (int64_t i = 0; i < count; ++i) {
    if (row[i] < 0 || row[i] >= source.rows())
      throw py::value_error("rows: row " + std::to_string(row[i]) + " is none");
  }
  py::gil_scoped_release release;
  auto* const to = static_cast<std::byte*>(info.ptr);
  const auto read = [&](gf::RowFiles& from, int64_t begin, int64_t end) {
    for (int64_t i = begin, n; i < end; i += n) {
      for (n = 1; i + n < end && row[i + n] == row[i] + n;) ++n;  // neighbours in one read
      from.read(row[i], n, to + i * row_bytes);
    }
  };
  // Several at once: a disk answers them together, and the page cache by as many cores.
  constexpr int64_t kMostReaders = 8, kRowsAReader = 512;
  const int64_t readers = std::clamp<int64_t>(count / kRowsAReader, 1, kMostReaders);
  std::vector<std::future<void>> parts;
  for (int64_t part = 1; part < readers; ++part) {
    parts.push_back(std::async(std::launch::async, [&, part] {
      gf::RowFiles own(list, row_bytes, dim_word, false);
      read(own, count * part / readers, count * (part + 1) / readers);
    }));
  }
  read(source, 0, count / readers);
  for (auto& part : parts) part.get();
}

// Messages hold paths, which need not be UTF-8.
void set_error(PyObject* type, const char* message) {
  const auto text = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(message));
  if (text) PyErr_SetObject(type, text.ptr());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of graceful_fast, the loader of its op library, and the reader of gallery files.";
  m.attr("version") = GF_VERSION;
  m.attr("compiler") = GF_COMPILER;
  m.attr("cuda") = GF_CUDA;
  m.attr("no_cuda") = GF_NO_CUDA;
  m.def("load", &load, py::arg("path"),
        "Load the op library at `path` and return the name of the instruction set in use.");

  py::register_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const gf::FileError& e) {
      set_error(PyExc_OSError, e.what());
    } catch (const gf::RowError& e) {
      set_error(PyExc_ValueError, e.what());
    }
  });
  py::class_<Reader>(m, "Reader",
                     "Blocks of rows of files (path, offset, stride, rows), read one ahead into two buffers in turn.")
      .def(
          py::init<const Files&, int64_t, const std::array<py::buffer, 2>&, int64_t, int64_t, std::optional<int32_t>>(),
          py::arg("files"), py::arg("row_bytes"), py::arg("buffers"), py::arg("start"), py::arg("stop"),
          py::arg("dim_word") = py::none())
      .def("next", &Reader::next,
           "The next block as (buffer, first row, rows), None at the end; the block before it is overwritten.")
      .def("close", &Reader::close, "Stop reading and join the thread.");
  m.def("read_rows", &read_rows, py::arg("files"), py::arg("row_bytes"), py::arg("rows"), py::arg("out"),
        py::arg("dim_word") = py::none(), "Read the rows of these numbers into `out`, packed.");
}
