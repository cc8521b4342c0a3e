# Two commands set up a fresh machine: `make demo` and `make test`.  Every target makes the environment first, if need be.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format docs bench

help:  ## show what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

setup:  ## make or renew the environment (done by all of the others)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 4; }
	@$(PYTHON) scripts/setup.py $(VENV)

demo: setup  ## compare seven methods on a small model and small data, some minutes; opens with which to use
	$(VENV)/bin/budwood demo

test: setup  ## the tests, without the slow ones
	$(PYTEST) -m "not slow and not gpu"

test-slow: setup  ## the slow tests: real models, real downloads
	$(PYTEST) -m "slow and not gpu"

lint: setup  ## format, style and types, as the continuous integration checks them
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy src/budwood

format: setup  ## put the code into the agreed form
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

docs: setup  ## write the generated parts of README.md and docs/ anew
	$(RUN) scripts/generated.py

bench: setup  ## the measurements behind every claim about speed and memory
	@for script in benchmarks/*.py; do \
		test -e "$$script" || { echo "there are no benchmarks yet"; continue; }; \
		echo "== $$script"; $(RUN) "$$script" || exit 1; done
