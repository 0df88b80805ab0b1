# `make demo` and `make test` work on a fresh machine with Python >= 3.10, a C++ compiler and make: they make .venv first.
# TORCH is what is installed there: the versions the package was last tested with. Any torch >= 2.10 with its torchvision
# will do: make test TORCH="torch==2.11.0 torchvision==0.26.0"
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1 torchvision==0.29.1
OUTPUT ?= runs/demo
SEEDS ?= 1
PYTEST_ARGS ?= -n auto
# The compiler of the CUDA kernels, as the extra `cuda` has it; like torch it must be there before the package is built.
TOOLKIT ?= cuda-toolkit[nvcc,cccl,cudart]==13.*

BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt artsy_ext/_toolkit.py \
  $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.h csrc/cuda/*)
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench budget gpu-check clean FORCE

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.learn ## install into .venv and run the demo; SEEDS=3 for three seeds
	$(BIN)/artsy demo --seeds $(SEEDS) --output $(OUTPUT) --overwrite

test: $(VENV)/.dev ## install into .venv and run the tests
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff, clang-format and mypy over the tree
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files

bench: $(VENV)/.dev ## the op benchmarks
	$(BIN)/pytest $(filter-out %/conftest.py,$(wildcard bench/ops/*.py))

budget: $(VENV)/.dev ## write down what the GPU kernels need, after a change of one
	$(BIN)/python tests/static/gate.py

# With the Python that has a torch for this GPU, and without .venv: nothing is downloaded.
gpu-check: ## on a machine with an NVIDIA GPU: build, test, sanitize, measure; GPU_CHECK="--steps build,kernels"
	$(PYTHON) tests/gpu_check.py $(GPU_CHECK)

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info artsy_ext/*.so $(VENV)/.learn $(VENV)/.dev

# The compiled part is built against the torch of .venv, hence without isolation. Another TORCH makes .venv anew.
$(VENV)/.torch: $(if $(filter-out $(shell cat $(VENV)/.torch 2>/dev/null),$(TORCH)),FORCE)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "setuptools>=77" cmake ninja pybind11
	@echo $(TORCH) > $@

$(VENV)/.cuda: $(VENV)/.torch
	$(BIN)/python -m pip install --quiet "$(TOOLKIT)"
	@touch $@

$(VENV)/.dev: $(VENV)/.cuda
$(VENV)/.learn $(VENV)/.dev: $(VENV)/.%: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$*]"
	@touch $@
