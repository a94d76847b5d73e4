# make demo: a frozen LM answers from latents, and a report says how far to trust that.
# make test: all tests. Each makes .venv on first use.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test lint types install

demo: install
	$(BIN)/latentwire fetch smollm2-135m
	$(BIN)/latentwire ask --context docs/titicaca.txt "Which river carries water out of the lake?"
	$(BIN)/latentwire eval default --limit 60 --run runs/demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

install: $(VENV)/done

# torch first and by itself, so that the pinned build is there before anything asks for another.
$(VENV)/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,hub,ray,serve,trackers]"
	touch $@
