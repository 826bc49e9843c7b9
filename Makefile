# Everything a newcomer needs. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LIGHT := $(VENV)/.light
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help

.PHONY: help
help: ## List what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Thrifty needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(LIGHT): $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(DEV): $(LIGHT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: up
up: $(LIGHT) ## Serve the default model (ARGS="..." are those of `thrifty up`)
	@exec $(BIN)/thrifty up $(ARGS)

.PHONY: down
down: $(LIGHT) ## Stop what runs
	@$(BIN)/thrifty down

.PHONY: check
check: $(DEV) ## The fast tests, lint and types: under 90 seconds
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not engine and not service and not peer"
	$(MAKE) --no-print-directory lint

.PHONY: test
test: $(DEV) ## The whole suite
	$(BIN)/python -m pytest -q -n 2 -m "not service and not engine and not peer"
	$(BIN)/python -m pytest -q -m "service or engine or peer"

.PHONY: lint
lint: $(DEV) ## Lint, formatting, types and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(DEV) ## Write the generated pages anew
	$(BIN)/python docs/generate.py

.PHONY: build
build: $(DEV) ## Build the wheel and the sdist, and try them in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/try_build.py dist

.PHONY: bench
bench: $(DEV) ## Measure every figure in the README (long; peers are installed on demand)
	$(BIN)/python benchmarks/run_all.py

.PHONY: clean
clean: ## Remove what was built, not the models
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
