# The two commands:  make boot [KERNEL=path]   make test
# Everything is built and run in .venv; what the system lacks is installed when root, named when not.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
KERNEL ?= demo
ARGS   ?=
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check
BUILD_INPUTS := setup.py pyproject.toml $(wildcard native/*.* native/guests/*.*)
NATIVE_C := $(wildcard native/*.c)

.DEFAULT_GOAL := help
.PHONY: help boot build test test-fast lint bench clean

help:
	@echo "make boot [KERNEL=path] [ARGS='--memory 1G ...']   boot the demo kernel, or an image"
	@echo "make test        everything        make test-fast   under a minute"
	@echo "make bench       figures           make lint        ruff, mypy, C warnings"

# ---- set-up

$(VENV)/.made:
	@PYTHON=$(PYTHON) sh tests/setup.sh
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'setuptools>=68' wheel 'cffi>=1.17'
	@touch $@

$(VENV)/.built: $(VENV)/.made $(BUILD_INPUTS)
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[lint]'
	@touch $@

build: $(VENV)/.built

# ---- run

boot: $(VENV)/.built
	@$(BIN)/python -m kvmpy boot $(KERNEL) $(ARGS)

bench: $(VENV)/.test
	@mkdir -p results
	$(BIN)/python tests/bench/run.py --json results/bench.json $(ARGS)

# ---- check

test: $(VENV)/.test
	@mkdir -p results
	$(BIN)/python -m pytest --junitxml=results/host.xml $(ARGS)

test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -fsyntax-only $(NATIVE_C)

clean:
	rm -rf $(VENV) build dist results kvmpy.egg-info kvmpy/_native.c kvmpy/_native*.so \
		kvmpy/guests/*.elf kvmpy/guests/*.bin
