# make demo: set up and show the main job.   make test: set up and run the tests.
# make demo-real: the same on Gemma 3 270M, which it fetches first (242 MiB, under Gemma's terms).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= ../shared/data/prompts
REAL ?= out/real
MODELS ?=
LLAMACPP ?= yes
LLAMA_READY := $(if $(filter no,$(LLAMACPP)),,$(VENV)/.ready-llamacpp)
WITHOUT := $(if $(filter no,$(LLAMACPP)),--without llama.cpp)

.PHONY: demo demo-real real test test-llamacpp test-fast test-all mutate check imports docs bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hasten needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable . pytest pytest-xdist hypothesis ruff mypy import-linter peft lark matplotlib gguf
	touch $@

$(VENV)/.ready-llamacpp: $(READY) tests/llamacpp/install.sh
	tests/llamacpp/install.sh $(BIN)/python
	if $(BIN)/python -c 'import llama_cpp' 2>/dev/null; then touch $@; fi

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

# The suite, with the llama.cpp backend where it can be had; `make test LLAMACPP=no` leaves that out and says so.
test: $(READY) $(LLAMA_READY)
	$(BIN)/python -m pytest -n 2 --every-area $(WITHOUT)

test-llamacpp: $(READY) $(LLAMA_READY)
	$(BIN)/python -m pytest -n 2 tests/llamacpp

# The core within a minute: trees, sampling, stopping, the loop, rules, sessions, the union.
test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 $(addprefix tests/,test_tree.py test_sampling.py test_noise.py test_logits.py test_stopping.py \
		test_values.py test_decode.py test_engine.py verify/test_must_fail.py verify/test_residual.py models/test_tree_session.py \
		models/test_chain_session.py models/test_probe.py drafters/test_combined.py drafters/test_suffix.py)

# Whole products of architectures, drafters, samplings and batches as well.
test-all: $(READY) $(LLAMA_READY)
	$(BIN)/python -m pytest -n 2 -m "" --every-area $(WITHOUT)

# The core broken in one place at a time: what no test notices, and the share of what they notice (SAMPLE=0: all).
SAMPLE ?= 25
mutate: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cosmic-ray
	$(BIN)/python tests/mutate.py --sample $(SAMPLE)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@wc -l $$(git ls-files 'src/*.py') | sort -n | tail -12

# Modules, folders, the arrows between them, and what imports itself in a circle.
imports: $(READY)
	$(BIN)/python tests/import_graph.py

# The site in out/site: guides and the reference, which is made of docstrings.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt mkdocs-material "mkdocstrings[python]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo out/site/index.html

bench: $(READY)
	HASTEN=$(BIN)/hasten bench/run.sh $(DATA) out/bench

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache src/*.egg-info
