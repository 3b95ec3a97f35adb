# Everything runs in .venv, made on first use from pinned versions (constraints.txt). Needs Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test check bench docs clean
help:
	@echo "make demo    install, then fine-tune MiniLM on text that every machine has (about five minutes)"
	@echo "make test    install, then run the tests"
	@echo "make check   ruff, pyright, import floors"
	@echo "make bench   speed, memory and file size, as ratios of one run"
	@echo "make docs    the documentation site, in docs/_build"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: set PYTHON=…")'
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/gossamer demo

test: $(READY)
	$(BIN)/python -m pytest --quiet

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest --quiet tests/test_floors.py

bench: $(READY)
	$(BIN)/python -m benchmarks

docs: $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "open docs/_build/index.html"

clean:
	rm -rf .venv build docs/_build dist .pytest_cache .ruff_cache .hypothesis
