# The daily commands. Everything runs in .venv, which the first of them makes; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := demo,serve,dev,bench
SGLANG_VENV := .venv-sglang
SGLANG_STAMP := $(SGLANG_VENV)/.installed
SGLANG_RUN := OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 TQDM_DISABLE=1 PYTHONPATH="$(CURDIR)/tests/hosts/sglang/on_cpu" \
  $(SGLANG_VENV)/bin/python -m tests.hosts.sglang.run -q
VLLM_OMNI_VENV := .venv-vllm-omni
VLLM_OMNI_STAMP := $(VLLM_OMNI_VENV)/.installed
VLLM_OMNI_TESTS := tests/hosts/vllm_omni
# More arguments for pytest, e.g. make test ARGS="tests/test_config.py -x"
ARGS ?=
# Test processes at once; 0 runs everything in one process
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test parity lint format bench quality load train-demo test-sglang install-sglang test-vllm-omni install-vllm-omni \
  clean install

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## draw a few prompts, dense and cached, and compare them
	@$(BIN)/dit-cache demo

test: $(STAMP)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -p no:benchmark $(ARGS)

test-sglang: $(SGLANG_STAMP)  ## beside the real SGLang-Diffusion, in .venv-sglang: its stage, and its own tests
	env -u DIT_CACHE_BACKEND $(SGLANG_RUN) $(ARGS)
	DIT_CACHE_BACKEND=cache_dit $(SGLANG_RUN) $(ARGS)

test-vllm-omni: $(VLLM_OMNI_STAMP)  ## beside the real vLLM-Omni, in .venv-vllm-omni: runner, Omni, server, two ranks
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(VLLM_OMNI_VENV)/bin/python -m pytest -q -c $(VLLM_OMNI_TESTS)/pytest.ini --rootdir . \
	  $(if $(ARGS),$(ARGS),$(VLLM_OMNI_TESTS))

parity: $(STAMP)  ## only the comparison with the cache-dit library
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -p no:benchmark tests/parity $(ARGS)

lint: $(STAMP)  ## formatting, ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# pytest-benchmark keeps its runs in .benchmarks; `python -m pytest benchmarks --benchmark-compare` sets two of them beside each other.
bench: $(STAMP)  ## measure beside cache-dit and FirstBlockCache, and write docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q benchmarks --benchmark-autosave
	OMP_NUM_THREADS=1 $(BIN)/dit-cache bench --output docs/benchmarks.md $(ARGS)

quality: $(STAMP)  ## docs/quality.md: every strategy at a given number of computed steps; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m dit_cache_backends.demo.quality $(ARGS)

load: $(STAMP)  ## 200 requests to a server, 16 at once: are the pictures right, is anything left
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/load.py $(ARGS)

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

install-sglang: $(SGLANG_STAMP)  ## only make .venv-sglang

$(SGLANG_STAMP): pyproject.toml tests/hosts/sglang/constraints.txt plugins/easy_cache/pyproject.toml
	@$(SGLANG_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(SGLANG_VENV)
	@echo "Installing into $(SGLANG_VENV): once, some minutes, about 3 GB."
	@$(SGLANG_VENV)/bin/python -m pip install --disable-pip-version-check -q -c tests/hosts/sglang/constraints.txt torch==2.13.0
	@$(SGLANG_VENV)/bin/python -m pip install --disable-pip-version-check -q --no-compile --no-deps -r tests/hosts/sglang/constraints.txt
	@$(SGLANG_VENV)/bin/python -m pip install --disable-pip-version-check -q --no-deps -e . -e plugins/easy_cache
	@touch $@

install-vllm-omni: $(VLLM_OMNI_STAMP)  ## only make .venv-vllm-omni

# Without dependencies: those that vllm names are gigabytes of CUDA, and constraints.txt lists all that is imported.
$(VLLM_OMNI_STAMP): pyproject.toml $(VLLM_OMNI_TESTS)/constraints.txt plugins/easy_cache/pyproject.toml \
    $(wildcard $(VLLM_OMNI_TESTS)/cpu_host/*) $(wildcard $(VLLM_OMNI_TESTS)/cpu_host/*/*.py)
	@$(VLLM_OMNI_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VLLM_OMNI_VENV)
	@echo "Installing into $(VLLM_OMNI_VENV): once, some minutes, about 3.5 GB."
	@$(VLLM_OMNI_VENV)/bin/python -m pip install --disable-pip-version-check -q --no-compile --no-deps -r $(VLLM_OMNI_TESTS)/constraints.txt
	@$(VLLM_OMNI_VENV)/bin/python -m pip install --disable-pip-version-check -q --no-deps --force-reinstall \
	  $(VLLM_OMNI_TESTS)/cpu_host -e . -e plugins/easy_cache
	@touch $@

clean:  ## remove .venv and everything made
	rm -rf $(VENV) $(SGLANG_VENV) $(VLLM_OMNI_VENV) build dist outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
