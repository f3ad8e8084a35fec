# The daily commands. Everything runs in .venv, which the first of them makes; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := demo,dev,bench
# More arguments for pytest, e.g. make test ARGS="tests/test_config.py -x"
ARGS ?=
# Test processes at once; 0 runs everything in one process
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test parity lint format bench train-demo clean install

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## draw a few prompts, dense and cached, and compare them
	@$(BIN)/dit-cache demo

test: $(STAMP)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -p no:benchmark $(ARGS)

parity: $(STAMP)  ## only the comparison with the cache-dit library
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -p no:benchmark tests/parity $(ARGS)

lint: $(STAMP)  ## formatting, ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## the measurements
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q benchmarks $(ARGS)

train-demo: $(STAMP)  ## make the shipped model again from nothing
	$(BIN)/python -m dit_cache_backends.demo.train $(ARGS)

install: $(STAMP)  ## only make .venv

# The stamp is written last: an installation that was cut short is taken up again.
$(STAMP): pyproject.toml constraints.txt conformance/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 13))' || { \
	  echo "Python 3.10 to 3.13 is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): once, some minutes, about 2 GB."
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[$(EXTRAS)]" \
	  -e conformance \
	  -e plugins/easy_cache \
	  -e plugins/fb_cache \
	  -e plugins/mag_cache \
	  -e plugins/sea_cache \
	  -e plugins/step_plan
	@touch $@

clean:  ## remove .venv and everything made
	rm -rf $(VENV) build dist outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
