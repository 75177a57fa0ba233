# The two commands a newcomer needs: make demo, make test. docs: the documentation site, in site/. test-oldest: the
# families on the oldest transformers allowed. test-lmms: benchmarks by lmms-eval, and clips with the old PyAV that it
# asks for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

OLDEST := .venv-oldest
LMMS := .venv-lmms

# Two files of tests at a time. Ray's come alone: it leaves threads in the process, after which no draft is forked.
TWO := -n 2 --dist loadfile

# What the release of transformers decides: families, forwards of its layers, its attention and its generate(). Not the
# tests that only show that a wrong forward is found.
OF_TRANSFORMERS := tests/families tests/test_custom.py tests/pruning/test_attention.py \
  $(addprefix tests/forward/test_,cached_model.py fused.py kv_cache.py likeliest.py together.py) \
  $(addprefix tests/test_pair.py::test_,every_decoder_pruner_and_gamma_equals_generate \
    prompts_without_a_video_and_with_an_image penalties_of_the_checkpoint_are_those_of_generate) \
  -k "not no_near_tie"

.PHONY: demo test test-oldest test-lmms lint docs clean

demo: $(VENV)/installed
	$(BIN)/hippo demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(TWO) --ignore tests/ray
	$(BIN)/python -m pytest tests/ray

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest $(TWO) $(OF_TRANSFORMERS)

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
