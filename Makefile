# What people and CI type. Each target makes what it needs: a virtual environment in .venv, brought up to date only when
# pyproject.toml or constraints.txt has changed since.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Two stamps: the demo needs no developer tools, and must not wait for them.
DEMO := $(VENV)/.installed-demo
DEV  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test slow check fix clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO) ## install, run studies/quickstart.yaml, say where the report is
	$(BIN)/lorascope run studies/quickstart.yaml

test: $(DEV) ## run the tests (no network, no GPU)
	$(BIN)/python -m pytest

slow: $(DEV) ## run the simulations and whole studies too
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(DEV) ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fix: $(DEV) ## mend what can be mended automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and the caches; stores and results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lorascope needs Python 3.11 or newer; say which: make PYTHON=python3.12" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,dev]"
	@touch $@ $(DEMO)
