# Every target sets itself up: it needs Python 3.11+, a C++20 compiler, make and pip. PYTHON= chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS := cli,report,ray,demo,dev
# The torch to test with where none is installed. The CPU build is 190 MB; the default one on PyPI pulls gigabytes of CUDA.
TORCH_VERSION ?= 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
SOURCES := $(shell find csrc graceful_fast -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') CMakeLists.txt pyproject.toml

.PHONY: demo test test-all test-wheel test-sanitize check cuda-check format bench install clean

demo: $(VENV)/installed
	$(BIN)/graceful-fast demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow"
	$(MAKE) test-wheel

test-all: $(VENV)/installed
	$(BIN)/python -m pytest
	$(MAKE) test-wheel

# The emulator of csrc/simt under AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitize: $(VENV)/installed
	$(BIN)/python -m pytest python_tests/test_simt.py -k sanitizers

# The wheel as a user gets it, run from another folder with -P, in an environment that sees the dependencies of $(VENV) but
# not its editable install: the source tree can shadow nothing.
test-wheel: $(VENV)/installed
	rm -rf build/wheel && $(PIP) wheel -q --no-build-isolation --no-deps -w build/wheel .
	$(BIN)/python -m venv --clear --without-pip build/wheel/venv
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$(build/wheel/venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth"
	$(PIP) --python build/wheel/venv/bin/python install -q --no-deps --force-reinstall build/wheel/*.whl
	cd build/wheel && GRACEFUL_FAST_TEST_WHEEL=1 venv/bin/python -P -m pytest -c ../../pyproject.toml --rootdir ../.. \
	  -p no:cacheprovider ../../python_tests/test_package.py ../../python_tests/test_cli.py ../../python_tests/test_docs.py

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	@echo "kernel objects export their table and nothing that the linker could share between instruction sets:"
	! find build -name '*_kernels.cpp.o' | xargs nm -C --defined-only | grep -E ' [WVui] ' | grep -v DW.ref
	@if command -v nvcc >/dev/null; then $(MAKE) cuda-check; else echo "cuda-check: skipped, there is no nvcc on PATH"; fi

# What nvcc makes of the CUDA kernels, against csrc/cuda/limits.json: needs nvcc, but no GPU.
cuda-check: $(VENV)/installed
	$(BIN)/python csrc/cuda/check.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

bench: $(VENV)/installed
	$(BIN)/python -m bench

install:
	rm -f $(VENV)/installed
	$(MAKE) $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), f'Python 3.11 or later is needed, this is {sys.version}'"
	$(PYTHON) -m venv $(VENV)

# A GPU gets PyPI's torch, a machine without one the CPU build: from the configured indexes, else from PyTorch's own.
$(VENV)/bin/torch-ready: | $(VENV)/bin/python
	@$(BIN)/python -c "import torch" 2>/dev/null \
	  || { nvidia-smi >/dev/null 2>&1 && $(PIP) install -q torch==$(TORCH_VERSION); } \
	  || $(PIP) install -q torch==$(TORCH_VERSION)+cpu 2>/dev/null \
	  || $(PIP) install -q torch==$(TORCH_VERSION)+cpu --extra-index-url $(TORCH_CPU_INDEX)
	@touch $@

# The build backend's own needs come first: the build runs without isolation, against the torch that is installed.
$(VENV)/installed: $(VENV)/bin/torch-ready $(SOURCES)
	@$(PIP) install -q "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.26" ninja numpy
	@$(BIN)/python -c "import torch; print('torch==' + torch.__version__)" > $(VENV)/constraints.txt
	$(PIP) install -q --no-build-isolation -c $(VENV)/constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
