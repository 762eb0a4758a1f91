# make demo: set up and show the main job.   make test: set up and run the tests.
# make demo-real: the same on Gemma 3 270M, which it fetches first (242 MiB, under Gemma's terms).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= ../shared/data/prompts
REAL ?= out/real
MODELS ?=

.PHONY: demo demo-real real test test-all check bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hasten needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable . pytest pytest-xdist hypothesis ruff mypy import-linter peft lark matplotlib gguf
	touch $@

demo: $(READY)
	$(BIN)/hasten demo

demo-real: $(READY)
	$(BIN)/python bench/real_model.py $(REAL)
	$(BIN)/hasten demo $(REAL)/hf

# The texts and the speed of Gemma 3 270M, and of the checkpoints in MODELS, against transformers' own generate.
real: $(READY)
	$(BIN)/python bench/real_model.py $(REAL)
	for model in $(REAL)/hf $(MODELS); do $(BIN)/hasten check $$model || exit 1; done
	$(BIN)/hasten bench $(REAL)/hf --prompts demo --limit 3 --max-new-tokens 64 --methods plain,auto --baselines hf

test: $(READY)
	$(BIN)/python -m pytest -n 2

# Whole products of architectures, drafters, samplings and batches as well.
test-all: $(READY)
	$(BIN)/python -m pytest -n 2 -m ""

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@wc -l $$(git ls-files 'src/*.py') | sort -n | tail -12

bench: $(READY)
	HASTEN=$(BIN)/hasten bench/run.sh $(DATA) out/bench

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache src/*.egg-info
