# `make demo` and `make test` work on a fresh machine with Python >= 3.10: each first builds .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what users install, and what tests need besides; bytecode of gigabytes of packages is left to the first import of each
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-compile

# tests start hundreds of processes; where bytecode is not kept, each compiles all of PyTorch and nnU-Net anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup test test-fast test-nightly lint prose docs demo bench clean

setup: $(STAMP)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "nnunet-kd needs Python >= 3.10; set PYTHON=/path/to/python3.10 or newer.")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $(INSTALLED)

$(STAMP): $(INSTALLED) runtime/pyproject.toml
	$(INSTALL) -e ./runtime
	$(INSTALL) -e '.[dev]'
	touch $(STAMP)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not nightly"

# other releases of nnU-Net, installed beside, fresh environments, many real cases; reports, and stops nobody
test-nightly: $(STAMP)
	-$(BIN)/python -m pytest -m nightly -W default --durations=20

lint: $(STAMP) prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pages for readers in a hurry: sentence and page length
prose: $(STAMP)
	$(BIN)/python docs/check_prose.py

# the site, in build/site
docs: $(STAMP)
	$(BIN)/python docs/write_reference.py
	$(BIN)/python docs/build_site.py

demo: $(INSTALLED)
	$(BIN)/nnunet-kd demo

bench: $(INSTALLED)
	$(BIN)/nnunet-kd bench loss
	$(BIN)/nnunet-kd bench step

clean:
	rm -rf $(VENV) build dist demo-output .cache
