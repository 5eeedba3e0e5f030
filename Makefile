# `make quickstart` and `make test` need Python 3.11 or newer and a package registry, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: quickstart test coverage test-slow test-gpu fuzz lint bench bench-pairs bench-gpu bench-gpu-all bench-data bench-recommend bench-serve paper-smoke paper-report compat docs package clean

# Threads that wait for each other sleep: on a machine with other work they would slow everything down
quickstart: $(VENV)/.quickstart
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/quickstart.py $(ARGS)

# One thread for each of the two workers: two pools of two threads on two cores take eight times as long
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

# Of lines and branches, by the quick suite; what runs in processes of its own is not counted
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" --cov --cov-report=term $(ARGS)

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow and not gpu" $(ARGS)

# The property-based tests with other inputs than `make test` and `make test-slow` draw, each time new ones
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu" --hypothesis-profile other \
		$$(grep -rl "from hypothesis import" tests --include "test_*.py") $(ARGS)

# Both run without network, by .venv or else by the machine's own Python, and end in ten minutes. Of several GPUs they
# take one: TRL refuses a process that sees more
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),$(PYTHON))
test-gpu:
	CUDA_VISIBLE_DEVICES=0 PYTHONPATH=src:tests timeout 600 $(GPU_PYTHON) -m pytest -m gpu $(ARGS)

# Never run on a GPU yet: none was at hand
bench-gpu:
	timeout 660 $(GPU_PYTHON) benchmarks/gpu.py --output benchmarks/results/gpu $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An hour to an hour and a half on two cores, with nothing else running
BENCH := --output benchmarks/results $(ARGS)
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/step.py --memory --profile $(BENCH)
	$(BIN)/python benchmarks/step.py --lora --negatives 7 --sides copies trie "trie, precomputed reference" --name step-lora $(BENCH)
	$(BIN)/python benchmarks/step.py --compile --negatives 7 --rounds 2 --sides trie "trie, compiled" --name step-compiled $(BENCH)
	$(BIN)/python benchmarks/step.py --negatives 3 --prompt_lengths 64 128 256 512 --rounds 2 --sides copies trie --name step-prompt $(BENCH)
	$(BIN)/python benchmarks/step.py --negatives 3 --batch_sizes 1 2 4 --rounds 2 --sides trie "trie, one at a time" "trie, padded rows" --name step-batch $(BENCH)
	$(BIN)/python benchmarks/step.py --negatives 3 7 15 --user_positions 1 10 --memory --sides copies trie "trie, one at a time" --name step-growing $(BENCH)
	$(BIN)/python benchmarks/whole_trainer.py --examples 16 $(BENCH)
	$(BIN)/python benchmarks/whole_trainer.py --pairs --examples 4 --rounds 2 $(BENCH)
	$(BIN)/python benchmarks/heads.py --tokens 36 144 --rounds 3 $(BENCH)
	$(BIN)/python benchmarks/ranking.py $(BENCH)
	$(BIN)/python benchmarks/head_check.py $(BENCH)

# The DMPO authors' pairs, which may not be redistributed: make bench-pairs PAIRS=FOLDER
PAIRS_OPTIONS := --name step-rows --batches 4 --rounds 2 --copies_at_once 10 --sides trie "trie, padded rows" $(BENCH)
bench-pairs: $(VENV)/.dev
	$(BIN)/python benchmarks/step.py --rows $(PAIRS)/rec_data_ml_1m_dpo_ranking_5.json $(PAIRS_OPTIONS)
	$(BIN)/python benchmarks/step.py --rows $(PAIRS)/rec_Amazon_Movie_dpo_ranking_5.json $(PAIRS_OPTIONS)
	$(BIN)/python benchmarks/step.py --rows $(PAIRS)/rec_Amazon_Game_dpo_ranking_5.json $(PAIRS_OPTIONS)

# All shapes and lengths, forty minutes of a GPU of 80 GB: never run yet
GPU := --device cuda --dtype bfloat16 --output benchmarks/results
bench-gpu-all:
	$(GPU_PYTHON) benchmarks/step.py --shape llama-1b --negatives 1 3 7 15 31 --name step-llama-1b $(GPU)
	$(GPU_PYTHON) benchmarks/step.py --shape llama-1b --negatives 7 --prompt_lengths 256 512 1024 2048 --name step-llama-1b-prompt $(GPU)
	$(GPU_PYTHON) benchmarks/step.py --shape qwen-1.7b --negatives 1 7 31 --name step-qwen-1.7b $(GPU)
	$(GPU_PYTHON) benchmarks/step.py --shape llama-8b --lora --negatives 1 3 7 15 31 --name step-llama-8b-lora $(GPU)
	$(GPU_PYTHON) benchmarks/step.py --shape qwen-8b --lora --four_bit --negatives 1 7 31 --name step-qwen-8b-4bit $(GPU)
	$(GPU_PYTHON) benchmarks/fit.py --shape llama-8b --lora --bounds 24 48 80 $(GPU)
	$(GPU_PYTHON) benchmarks/heads.py --hidden 4096 $(GPU)

bench-data: $(VENV)/.dev
	$(BIN)/python benchmarks/data.py $(ARGS)

# The environment of the paper's traditional recommenders (RecBole), 1.5 GB; Python 3.11 or 3.12. RecBole's further
# requirements are for parts of it that are not used
.PHONY: .venv-traditional
.venv-traditional: .venv-traditional/.made
.venv-traditional/.made: benchmarks/paper/traditional/requirements.txt
	$(PYTHON) -m venv .venv-traditional
	.venv-traditional/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-traditional/bin/python -m pip install --quiet --disable-pip-version-check --no-deps recbole==1.2.1
	@touch $@

# Whether every method, table and picture of the paper's experiments runs, with a tiny model on made-up data
paper-smoke: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/benchmarks/test_paper.py $(ARGS)

# The tables, pictures and page of all cells that are there
paper-report: $(VENV)/.dev
	PYTHONPATH=benchmarks $(BIN)/python -m paper report benchmarks/results/learning $(ARGS)

# Beams, retrieve then rank, and transformers' own beam search, with one thread; and the trie of 100,000 titles
bench-recommend: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/recommend.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/recommend.py --users 8 --proven False --generate_beams 0 --beams 20 --candidates 20 --together 2 4 8 $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/recommend.py --titles 100000 $(BENCH)

# The service under 64 clients at once, against direct calls
bench-serve: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serve.py $(BENCH)

# Other versions of Python and of what dmpo-trl builds on: one environment after the other, of up to 6 GB each
compat: $(VENV)/.dev
	$(BIN)/python scripts/compat.py $(ARGS)

# The documentation's site, into site/: a warning is an error (with --quiet none would be counted), and links are checked
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python scripts/docs/check_site.py site

# What would be published, and whether it works alone, in an environment that pip fills from the registry
package: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build && alone/bin/python ../scripts/smoke.py
	rm -rf build

clean:
	rm -rf $(VENV) .compat build dist site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "dmpo-trl needs Python 3.11, 3.12 or 3.13: run 'make PYTHON=python3.11 ...'"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each stamp stands for an installed dependency group; pip runs again only when the requirements change.
# Groups need pip 25.1, and a new environment has the pip that came with Python
$(VENV)/.quickstart $(VENV)/.dev: $(VENV)/.%: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . --group $*
	@touch $@

# Alone, it takes no torch: the site is made of the sources' text
$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	@touch $@
