# `make quickstart` and `make test` need Python 3.11 or newer and a package registry, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: quickstart test test-slow lint bench bench-ranking bench-data clean

quickstart: $(VENV)/.quickstart
	$(BIN)/python examples/quickstart.py $(ARGS)

# One thread for each of the two workers: two pools of two threads on two cores take eight times as long
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/step.py $(ARGS)
	$(BIN)/python benchmarks/heads.py

bench-ranking: $(VENV)/.dev
	$(BIN)/python benchmarks/ranking.py $(ARGS)

bench-data: $(VENV)/.dev
	$(BIN)/python benchmarks/data.py $(ARGS)

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dmpo-trl needs Python 3.11 or newer: run 'make PYTHON=python3.11 ...'"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each stamp stands for an installed extra; pip runs again only when the requirements change
$(VENV)/.quickstart $(VENV)/.dev: $(VENV)/.%: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
