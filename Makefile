# One command for each thing a newcomer wants. Needs Python 3.11 or later with pip, and make; a C++
# compiler lets the torch backend compile, and is not needed otherwise.
#
#   make PYTHON=/path/to/python3.11 test     another interpreter for .venv
#   make INSTALL=.[torch] .venv/installed    fewer extras (the tests then skip what is missing)

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/installed
INSTALL ?= .[all]
WORKERS ?= 2
BASE    ?= main

# The first interpreter that is new enough, so that an old `python3` does not get in the way.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Each test worker keeps to one core: WORKERS times a thread pool would only fight over them. Two
# arenas, since glibc would keep one for each thread that ever compiled, and give none of it back.
ONE_CORE := MALLOC_ARENA_MAX=2 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	XLA_FLAGS="--xla_cpu_multi_thread_eigen=false $$XLA_FLAGS"

.DEFAULT_GOAL := help
.PHONY: help install demo doctor test test-all test-changed check lint format bench reproduce clean distclean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: found no Python 3.11 or later, which probgen needs;" \
		"install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make a" \
		"virtual environment; install its venv module (on Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# pip would compile all files of all libraries, for a minute: what is used is compiled where it is
# first imported, and kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '$(INSTALL)'
	@touch $@

install: $(STAMP)  ## .venv with every extra, at the versions of constraints.txt

demo: $(STAMP)  ## train, sample and judge a small model of digits, in two or three minutes
	$(BIN)/probgen demo

doctor: $(STAMP)  ## what is installed here, and what works
	$(BIN)/probgen doctor

test: lint  ## what CI runs: format, lint, types, tests, docstring examples
	$(ONE_CORE) $(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-all:  ## before a release: also the tests of laws that other tests hold
	$(MAKE) test ARGS='-m "not slow and not gpu" $(ARGS)'

test-changed: $(STAMP)  ## two minutes of the tests that reach what differs from main (BASE=...)
	$(ONE_CORE) $(BIN)/python -m tools.changed_tests --base $(BASE) -n $(WORKERS) $(ARGS)

check: lint  ## format, lint and types alone
	$(BIN)/python tools/typecheck.py

lint: $(STAMP)  ## format and lint alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)  ## rewrite the files as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## time probgen against Pyro and NumPyro as such; writes benchmarks/results
	$(BIN)/python benchmarks/run.py $(ARGS)

# A whole study where NAME is one, tests/studies/test_NAME.py, so that `ebm` is not `vaebm` too; else
# every slow test that has NAME in its name.
STUDY = $(wildcard tests/studies/test_$(NAME).py)

reproduce: $(STAMP)  ## recompute a published number: make reproduce NAME=likelihood_regret
	@test -n "$(NAME)" || { echo "make reproduce: got no NAME; expected a study, tests/studies/" \
		"test_NAME.py, or a part of a slow test's name, one of:" >&2; \
		$(BIN)/pytest -m slow --collect-only -q | sed -n 's/^tests/  tests/p'; exit 1; }
	$(BIN)/pytest -m slow $(if $(STUDY),$(STUDY),-k '$(NAME)') -s --timeout 0 $(ARGS)

clean:  ## remove what tests, types and builds leave behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv
	rm -rf $(VENV)
