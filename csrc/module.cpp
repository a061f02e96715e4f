// _C: what is no tensor op: build facts, loading the op library, the choice of instruction set.
// No torch header here: torch bundles a pybind11 of its own and the two must not meet in one translation unit.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of graceful_fast, and the loader of its op library.";
  m.attr("version") = GF_VERSION;
  m.attr("compiler") = GF_COMPILER;
  m.attr("cuda_built") = bool(GF_CUDA_BUILT);
  m.def("load", &load, py::arg("path"),
        "Load the op library at `path` and return the name of the instruction set in use.");
}
