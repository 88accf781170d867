# Two commands on a fresh machine: `make fit` trains the flagship, `make test` runs the test suite.
# `make slow` runs the tests that are left out there, for they wait: ranks that die or hang, signals, two commands at once.
# `make docs` builds the documentation into site/; a warning is an error.
# `make kernels` compiles every variant of the GPU kernels, without a GPU: most of an hour on two cores.
#
#   PYTHON=python3.12     the interpreter to make .venv with (3.10 or newer)
#   VENV=.venv            where to
#   TORCH='torch==2.13.0' what to hand to `pip install` for torch; by default lg chooses
#   CONFIG=configs/...    what `make fit` trains
#   JOBS=auto             how many processes run tests at once

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?=
CONFIG ?= configs/hybrid.yaml
JOBS   ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: fit test slow check kernels docs clean

fit: $(VENV)/.lg
	$(BIN)/lg fit --config $(CONFIG)

test: $(VENV)/.lg-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow'

slow: $(VENV)/.lg-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.lg-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels: $(VENV)/.lg-dev
	$(BIN)/python -m lg.attention.impl.triton.ahead --all

docs: $(VENV)/.lg-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site lg.egg-info .mypy_cache .pytest_cache .ruff_cache
	find lg tests scripts -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "lg needs Python 3.10 or newer; \`$(PYTHON)\` is `$(PYTHON) --version 2>&1`." \
		"Name another one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(BIN); exit 2; }

$(VENV)/.torch: scripts/install_torch.py | $(BIN)/python
	$(BIN)/python scripts/install_torch.py $(TORCH)
	@touch $@

$(VENV)/.lg: pyproject.toml $(VENV)/.torch
	$(PIP) install --editable .
	@touch $@

$(VENV)/.lg-dev: pyproject.toml $(VENV)/.torch
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.lg

$(VENV)/.lg-docs: pyproject.toml $(VENV)/.torch
	$(PIP) install --editable '.[docs]'
	@touch $@ $(VENV)/.lg
