# The commands of the project. `make demo` and `make test` set up what they need, once: .venv holds Python, the
# pinned packages and the editable install; build/ holds everything the tools write. Nothing is written elsewhere.

PYTHON ?= python3
JOBS ?= 2
# Kernels in CUDA C++ take an nvcc minutes for all architectures: CUDA=1 builds them with the rest, as pip install does.
CUDA ?= 0

VENV := .venv
BIN := $(VENV)/bin
ENVIRONMENT := $(VENV)/.environment
TOOLS := $(VENV)/.tools
NATIVE := $(VENV)/.native
INTEGRATIONS := .venv-integrations/.installed
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null) \
    $(wildcard CMakeLists.txt setup.py pyproject.toml dmao_kernels/_library.py)
CPP_SOURCES := $(filter %.h %.cpp %.cu %.cuh,$(shell find csrc -type f 2>/dev/null))
PYTHON_SOURCES := $(wildcard dmao_kernels python tests benchmarks examples docs setup.py)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --basetemp build/pytest

# The tools of .venv come first, in the build (cmake, ninja) as in the tests (dmao).
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One set of versions for every pip call.
export PIP_CONSTRAINT := $(CURDIR)/requirements/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Caches stay in the tree, so that neither a home directory nor the right to write to it is needed.
export PIP_NO_CACHE_DIR := 1
export DMAO_NO_CUDA ?= $(if $(filter 1,$(CUDA)),0,1)
export XDG_CACHE_HOME := $(CURDIR)/build/cache
export MPLCONFIGDIR := $(CURDIR)/build/cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/build/cache/torchinductor
export TRITON_HOME := $(CURDIR)/build/cache

.PHONY: help setup demo test test-all coverage mutants test-interp test-aot test-emu test-cuda-build test-package test-zoo \
    test-integrations sanitize emulate bench bench-quick docs licences sdist wheel lint format clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo       set up, then train the uniform baseline and the grow-and-drop model; runs/demo/report.html"
	@echo "make test       set up, then run the quick tests"
	@echo "make test-all   the slow sweeps as well"
	@echo "make coverage   what the quick tests reach of the Python code; build/coverage/html"
	@echo "make mutants    faults planted in the planning and carrying out of events; tests must notice; build/mutants.json"
	@echo "make test-interp  every Triton kernel without a GPU, in Triton's interpreter, in two orders of programs"
	@echo "make test-aot   every Triton kernel compiled for GPUs that are not there, within budgets; build/aot.md"
	@echo "make test-emu   CUDA kernels on the host, under ASan, UBSan and TSan as well, with faults planted"
	@echo "make test-cuda-build  the wheel, and what nvcc made of the CUDA kernels in it, within budgets; build/cuda.md"
	@echo "make wheel      one wheel for every Python, with CUDA kernels for all architectures, by nvcc or its pip packages; dist"
	@echo "make sdist      the sources as a package; dist"
	@echo "make test-package  sdist and wheel in new environments of Python 3.10 to 3.13, as far as they are here; minutes, GBs"
	@echo "make licences   docs/LICENSES.md, from what is installed in .venv"
	@echo "make test-integrations  Lightning, transformers, accelerate, peft, ONNX, in an environment of their own beside .venv"
	@echo "make test-zoo   grow and drop on models of other packages, in an environment of their own; build/zoo.md"
	@echo "make sanitize   the CPU kernels on random problems under ASan, UBSan and TSan"
	@echo "make emulate    the AVX-512 kernels in an emulator, on a machine without (Debian; installs nothing, says what it needs)"
	@echo "make bench      all benchmarks, against their peers, about an hour; benchmarks/results;  make bench-quick takes minutes"
	@echo "make docs       the documentation as a site; site/index.html"
	@echo "make lint       ruff, mypy, clang-format (checks only);  make format rewrites"
	@echo "make clean      remove build outputs;  make distclean removes .venv as well"
	@echo "Variables: PYTHON=python3 (3.10 or newer), JOBS=2 (parallel test processes), ARGS (passed on to pytest, dmao demo, benchmarks)"

setup: $(NATIVE)

demo: $(NATIVE)
	$(BIN)/dmao demo $(ARGS)

test: $(NATIVE)
	@mkdir -p build
	$(PYTEST) $(ARGS)

test-all: $(NATIVE)
	@mkdir -p build
	$(PYTEST) -m "not emulator" $(ARGS)

coverage: $(NATIVE)
	@mkdir -p build/coverage
	$(PYTEST) --cov --cov-report=term --cov-report=html $(ARGS)

# ARGS="--only plan.py:120", with test files behind it to try these alone.
mutants: $(NATIVE)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/python $(BIN)/python -m tests.mutants $(ARGS)

# Other people's models: their packages stand beside those of .venv, which this environment sees as well.
ZOO := .venv-zoo
ZOO_TOOLS := $(ZOO)/.tools

test-zoo: $(NATIVE) $(ZOO_TOOLS)
	@mkdir -p build
	HF_HUB_OFFLINE=1 $(ZOO)/bin/python -m pytest -q -s -p no:cacheprovider tests/zoo $(ARGS)

# Without a GPU; the order in which programs run must not matter. TRITON_INTERPRET holds for a whole process.
test-interp: $(NATIVE)
	@mkdir -p build
	INTERP_SEED=0 TRITON_INTERPRET=1 $(PYTEST) -m "" tests/triton $(ARGS)
	INTERP_SEED=1 TRITON_INTERPRET=1 $(PYTEST) -m "" tests/triton $(ARGS)

# Compiles for GPUs that are not there; ARGS=--write-budgets takes what comes out for the budgets, to be reviewed.
test-aot: $(NATIVE)
	@mkdir -p build
	$(PYTEST) -m "" tests/aot $(ARGS)

test-emu: $(NATIVE)
	@mkdir -p build
	$(PYTEST) -m "" tests/emu $(ARGS)

# One wheel for every Python from 3.10 on; nvcc is that of PATH or, without one, of the pinned packages.
CUDA_TOOLS := .venv-cuda/.installed
wheel: $(NATIVE) $(if $(shell command -v nvcc),,$(CUDA_TOOLS))
	@rm -rf dist/*.whl build/lib build/lib.* build/bdist.*
	DMAO_NO_CUDA=0 DMAO_CUDA_ARCHITECTURES=all CMAKE_ARGS=-DDMAO_WERROR=ON CUDACXX="$$(command -v nvcc || echo .venv-cuda/lib/python3*/site-packages/nvidia/cu*/bin/nvcc)" \
	    $(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls -l dist

# The lists of an earlier build would add what has left the tree since.
sdist: $(TOOLS)
	@mkdir -p build dist && rm -rf *.egg-info dist/*.tar.gz
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")' > build/sdist.log
	@ls -l dist

# From the sdist through the wheel into new environments of every Python that is here, which build/package keeps.
test-package: $(NATIVE)
	@mkdir -p build
	$(PYTEST) -n 0 -m "" tests/install $(ARGS)

# The page that names the licence of every package of .venv.
licences: $(NATIVE)
	$(BIN)/python -m tests.packaging.licences > build/LICENSES.md && mv build/LICENSES.md docs/LICENSES.md

# What nvcc made: resources of every kernel, and the wheel in an environment of its own.
test-cuda-build: wheel
	@mkdir -p build
	$(PYTEST) -n 0 -m "" tests/cuda $(ARGS)

test-integrations: $(INTEGRATIONS)
	@mkdir -p build
	OMP_NUM_THREADS=1 $(dir $(INTEGRATIONS))bin/python -m pytest -q -rs --basetemp build/pytest-integrations tests/integrations $(ARGS)

sanitize: $(NATIVE)
	@mkdir -p build
	$(PYTEST) -m "" tests/native/test_sanitized.py $(ARGS)

emulate: $(NATIVE)
	@mkdir -p build
	$(PYTEST) -n 0 -rs -m emulator tests/native/test_instruction_sets.py $(ARGS)

BENCH := $(BIN)/python -m pytest -q benchmarks -p no:cacheprovider

bench: $(NATIVE)
	$(BENCH) $(ARGS)

bench-quick: $(NATIVE)
	$(BENCH) --quick --seconds 0.3 $(ARGS)

# Warnings are errors (mkdocs.yml), which -q would hide. The variable silences a notice of the theme about its successor.
DOCS := .venv-docs/.installed
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(dir $(DOCS))bin/mkdocs build

lint: $(NATIVE)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy $(wildcard dmao_kernels python/dmao)
	$(if $(CPP_SOURCES),$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES))

format: $(NATIVE)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(if $(CPP_SOURCES),$(BIN)/clang-format -i $(CPP_SOURCES))

clean:
	rm -rf build dist *.egg-info python/*.egg-info $(NATIVE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dmao_kernels python tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find dmao_kernels -name '*.so' -delete 2>/dev/null || true

distclean: clean
	rm -rf $(VENV) $(ZOO) $(dir $(INTEGRATIONS)) $(dir $(CUDA_TOOLS)) $(dir $(DOCS)) site

$(ENVIRONMENT):
	@command -v $(PYTHON) >/dev/null || { echo "dmao: '$(PYTHON)' not found: install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "dmao: Python 3.10 or newer is needed, %s is %d.%d; name another one: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "dmao: '$(PYTHON)' has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What the build itself imports has to be there first: the project is built without isolation, against this torch.
$(TOOLS): requirements/constraints.txt | $(ENVIRONMENT)
	$(BIN)/python -m pip install -q torch setuptools wheel cmake ninja
	@touch $@

# Beside .venv, whose packages it sees: what the frameworks bring stays out of there.
$(INTEGRATIONS): requirements/integrations.txt $(NATIVE)
	$(BIN)/python -m venv $(dir $@)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > "$$($(dir $@)bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(dir $@)bin/python -m pip install -q -r requirements/integrations.txt
	@touch $@

$(NATIVE): $(TOOLS) $(NATIVE_SOURCES) requirements/triton.txt
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install -q -r requirements/triton.txt
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[recipes,dev]'
	@touch $@

$(CUDA_TOOLS): requirements/cuda.txt
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install -q -r requirements/cuda.txt
	@touch $@

# Docstrings are read, not imported: no PyTorch is needed.
$(DOCS): requirements/docs.txt
	$(PYTHON) -m venv $(dir $@)
	$(dir $@)bin/python -m pip install -q -r requirements/docs.txt
	@touch $@

# torchaudio's compiled parts need CUDA; without them it imports, and its models are pure Python.
$(ZOO_TOOLS): requirements/zoo.txt | $(TOOLS)
	$(BIN)/python -m venv --clear $(ZOO)
	$(ZOO)/bin/python -c 'import sys, sysconfig; from pathlib import Path; \
	    Path(sysconfig.get_path("purelib"), "project.pth").write_text("import site; site.addsitedir(%r)" % sys.argv[1])' \
	    "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(ZOO)/bin/python -m pip install -q --no-deps -r requirements/zoo.txt
	find $(ZOO) -path '*/torchaudio/lib/*.so' -delete
	@touch $@
