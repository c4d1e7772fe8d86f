# Everything runs in .venv; `make demo` and `make test` need nothing but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := results/demo

.PHONY: help demo setup test check format bench docs clean

help:
	@echo "make demo    a real study in about three minutes, to $(DEMO)/report.html"
	@echo "make setup   the development environment in $(VENV)"
	@echo "make test    the tests"
	@echo "make check   ruff and pyright"
	@echo "make bench   neoteny against PyTorch, side by side"
	@echo "make docs    the documentation, to site/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "neoteny needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What a user needs, and what a developer needs on top.
$(VENV)/.user: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[vision]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user
	$(BIN)/neoteny run plasticity --preset demo --out $(DEMO)

setup: $(VENV)/.dev

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'torch>=2.6'
	$(BIN)/python benchmarks/supervised.py

docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis .jax_cache
