# The two commands a newcomer needs: make demo, make test. docs: the documentation site, in site/. test-oldest: the
# families on the oldest transformers allowed. test-lmms: benchmarks by lmms-eval, and clips with the old PyAV that it
# asks for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

OLDEST := .venv-oldest
LMMS := .venv-lmms

.PHONY: demo test test-oldest test-lmms lint docs clean

demo: $(VENV)/installed
	$(BIN)/hippo demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest tests/families tests/test_custom.py tests/test_pair.py tests/forward tests/pruning

test-lmms: $(LMMS)/installed
	$(LMMS)/bin/python -m pytest tests/lmms tests/video/test_clip.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $(VENV)/installed $@

$(OLDEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q -e '.[dev]' transformers==5.16.1
	touch $@

$(LMMS)/installed: pyproject.toml
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install -q -e '.[dev,lmms]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(LMMS) site
