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
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
PINS := pyproject.toml constraints.txt
# Byte-compiling everything at installation costs more than compiling at first import the little that is imported, unless
# the environment forbids Python to keep that: then every process of every run would compile it again.
INSTALL = $(BIN)/python -m pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_ARGS) --constraint constraints.txt
PYTEST = $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile

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
	fi
endef

.PHONY: help
help: ## Say what there is
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Variables:'
	@echo '  PYTHON=python3.12       the Python (3.11 or 3.12) that makes the virtual environment'
	@echo '  TORCH_INDEX=URL         a further package index, for a CPU build of torch (a smaller download):'
	@echo '                          README.md names it'
	@echo '  PIP_ARGS="..."          more arguments for pip install'
	@echo '  PYTEST_WORKERS=2        test processes'
	@echo '  PYTEST_ARGS="..."       more arguments for pytest, such as "-k plan" or "tests/data"'
	@echo '  DEMO_ARGS="..."         more arguments for hmtl-dist demo'
	@echo '  BENCH_ARGS="--only ..." some benchmarks only: batched engine gpu index_size peers ...'

.PHONY: demo
demo: $(DEMO_STAMP) ## Install what a run needs, start local services, train on drawn faces
	@$(BIN)/hmtl-dist demo $(DEMO_ARGS)

.PHONY: test
test: $(TEST_STAMP) ## The quick tests (all but `slow`; `gpu` where there is one)
	@$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

.PHONY: test-all
test-all: $(TEST_STAMP) ## Every test (`gpu` where there is one)
	@$(PYTEST) $(PYTEST_ARGS)

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
	@touch $@

$(TEST_STAMP): $(PINS)
	@$(make_venv)
	@echo 'installing what the tests need (once; minutes)'
	@$(INSTALL) --editable '.[local,export,serve,server,test]'
	@touch $@ $(DEMO_STAMP)
