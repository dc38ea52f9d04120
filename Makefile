# Every target makes what it needs: the environment in .venv, the compiled module beside the package.
# PYTHON picks the interpreter of .venv; PIP_ARGS goes to pip, for instance
#   make PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" demo     (torch without CUDA, much smaller)

PYTHON ?= python3
PIP_ARGS ?=
MINUTES ?= 10
PYTHONS ?= $(wildcard $(foreach v,10 11 12 13 14,/usr/bin/python3.$(v) /usr/local/bin/python3.$(v) $(HOME)/.pyenv/versions/3.$(v).*/bin/python))
TORCHES ?= 2.6.0 2.14.1
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet $(PIP_ARGS)
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
DOCUMENTED := $(VENV)/.documented
NO_JOBS := env -u MAKEFLAGS  # ninja would ask make -j for its jobs
SOURCES := $(shell find csrc tests/cuda_emulator -name "*.[ch]*")

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help build demo test lint types interpret sanitized install-check check ptx docs lock wheels install-matrix neon fuzz sanitize bench gpu-check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# LOCKED=1, as continuous integration has it, takes files of known hashes alone: PIP_ARGS must name an index, or with
# --find-links a folder, that has the torch without CUDA which is listed. --no-deps: all else is.
ifdef LOCKED
REQUIREMENTS := requirements/locked-torch.txt requirements/locked.txt
INSTALL = $(PIP) --no-deps --require-hashes $(REQUIREMENTS:%=-r %)
else
REQUIREMENTS := requirements/torch.txt requirements/dev.txt
INSTALL = $(PIP) -r requirements/torch.txt && $(PIP) -r requirements/dev.txt
endif

$(INSTALLED): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "the pinned tools need Python 3.11 or newer; choose one with make PYTHON=..."; exit 1; }
	@echo "installing into $(VENV): the first time takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL)
	@# as an editable install, without a build: .venv sees the package in this folder
	@$(PY) -c 'import os, site; open(site.getsitepackages()[0] + "/flowkernels.pth", "w").write(os.getcwd())'
	@touch $@

# Where no GPU would run them, kernels are compiled for one, with the PTX that tests execute.
$(BUILT): export FLOWKERNELS_CUDA_ARCHS := $(or $(FLOWKERNELS_CUDA_ARCHS),$(if $(shell command -v nvidia-smi),,90))
$(BUILT): $(INSTALLED) $(SOURCES) CMakeLists.txt $(wildcard cmake/*.cmake) setup.py
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

build: $(BUILT)  ## the compiled module, in place

demo: build  ## trains a spline flow on digits with and without flowkernels; writes out/digits_nsf.png
	$(PY) examples/digits_nsf.py

test: build  ## every check of continuous integration; fails if any fails
	@# Two at a time where most of a step runs on one core; pytest alone, with a worker a core.
	@status=0; $(MAKE) --no-print-directory -k -j2 -O lint types docs sanitized install-check || status=1; \
	for step in interpret check; do $(MAKE) --no-print-directory $$step || status=1; done; exit $$status

lint: $(INSTALLED)  ## ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

types: $(INSTALLED)  ## pyright on the package
	$(BIN)/pyright --pythonpath $(PY)

interpret: build  ## Triton's kernels in its interpreter: a choice of the ops' own tests
	TRITON_INTERPRET=1 FLOWKERNELS_BACKEND=triton $(PY) -m pytest -q -n 2 -m interpreted $(INTERPRETED) tests/ops

sanitized: $(INSTALLED)  ## a short form of sanitize: AddressSanitizer, UBSan, the smallest instruction set
	$(NO_JOBS) $(PY) -m tests.sanitize address --short

install-check: $(INSTALLED)  ## sdist, a wheel from it, an empty environment: smoke test and README's blocks
	$(NO_JOBS) $(PY) -m tests.install --short

ptx: build  ## compiled PTX of all CUDA and Triton kernels, run on the CPU; an hour, of which most is Triton's compiler
	$(PY) -m pytest -q tests/ptx

check: build  ## pytest: tests and doctests
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist worksteal --doctest-modules flowkernels tests

# The tables of classes on the site are read from the package, so its tools live beside torch in .venv.
ifdef LOCKED
INSTALL_DOCS = $(PIP) --no-deps --require-hashes -r requirements/locked-docs.txt
else
INSTALL_DOCS = $(PIP) -r requirements/docs.txt
endif

$(DOCUMENTED): $(INSTALLED) requirements/docs.txt requirements/locked-docs.txt
	$(INSTALL_DOCS)
	@touch $@

docs: $(DOCUMENTED)  ## the site, into build/site/; a warning or a dead link is an error
	$(PY) -m mkdocs build --strict

lock:  ## requirements/locked.txt from dev.txt: what continuous integration installs, by hash; needs uv
	uv pip compile requirements/dev.txt -c requirements/torch.txt --generate-hashes --no-emit-package torch --quiet \
	  --python-version 3.11 --no-annotate --no-header --no-emit-find-links --no-emit-index-url $(UV_ARGS) \
	  -o requirements/locked.txt
	uv pip compile requirements/docs.txt -c requirements/locked.txt --generate-hashes --quiet \
	  --python-version 3.11 --no-annotate --no-header --no-emit-find-links --no-emit-index-url $(UV_ARGS) \
	  -o requirements/locked-docs.txt

wheels: $(INSTALLED)  ## the wheels that this machine can build, checked, into dist/: CPU, and CUDA where nvcc is
	$(PY) -m tests.install.wheels

install-matrix: $(INSTALLED)  ## the whole of install-check: PYTHONS="python3.10 ..." TORCHES="2.6.0 ..."; gigabytes, an hour
	$(PY) -m tests.install --python $(PYTHONS) --torch $(TORCHES) $(INSTALL_ARGS)

neon: build  ## the numbers tests of all CPU ops, their kernels on an emulated ARM processor; needs qemu-user, g++-aarch64-linux-gnu
	$(PY) -m tests.neon

fuzz: build  ## calls of every op drawn at random, for MINUTES=10; valid ones must be right, wrong ones refused
	$(PY) -m tests.fuzz --minutes $(MINUTES)

sanitize: $(INSTALLED)  ## the ops' tests and the fuzzer under AddressSanitizer and UBSan, then ThreadSanitizer; an hour
	$(PY) -m tests.sanitize address
	$(PY) -m tests.sanitize thread --short --calls 20000

bench: build  ## benchmarks against the peers
	$(PY) -m pytest bench --benchmark-json=run.json && $(PY) -m bench.report.compare run.json

gpu-check:  ## builds, tests and times the CUDA kernels on this machine's GPU, python and torch; no network, no .venv
	$(PYTHON) -m bench.gpu.check

clean:  ## removes what was built; keeps .venv
	rm -rf build dist out .pytest_cache .ruff_cache .hypothesis .benchmarks $(BUILT) flowkernels/*.so
	find flowkernels tests bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
