# `make demo` and `make test` work on a fresh machine with Python >= 3.10: each first builds .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what users install, and what tests need besides; bytecode of gigabytes of packages is left to the first import of each
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.installed-dev
PIP_INSTALL := -m pip install --disable-pip-version-check --progress-bar off --no-compile
INSTALL := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
# where make test-nightly asks other releases: the newest of everything, and the lowest bounds of pyproject.toml that matter most
OTHERS := .venv-newest .venv-lowest
.venv-newest: RELEASES := --upgrade --upgrade-strategy eager nnunetv2 torch
.venv-lowest: RELEASES := nnunetv2==2.8.0 'torch==2.6.*'

# tests start hundreds of processes; where bytecode is not kept, each compiles all of PyTorch and nnU-Net anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup test test-fast test-nightly lint prose docs demo bench clean $(OTHERS)

setup: $(STAMP)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "nnunet-kd needs Python >= 3.10; set PYTHON=/path/to/python3.10 or newer.")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $(INSTALLED)

$(STAMP): $(INSTALLED) runtime/pyproject.toml
	$(INSTALL) -e ./runtime -e '.[dev]'
	touch $(STAMP)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not nightly"

# long tests, many real cases, fresh environments, and the fast tests on other releases; prints failures but always succeeds
test-nightly: $(STAMP)
	-$(BIN)/python -m pytest -m nightly -W default --durations=20
	-$(MAKE) --keep-going $(OTHERS)

$(OTHERS):
	$(PYTHON) -m venv --clear $@
	$@/bin/python $(PIP_INSTALL) $(RELEASES) -e ./runtime -e '.[dev]'
	$@/bin/python -m pip list
	$@/bin/python -m pytest -m "not slow and not nightly" -W default

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
	rm -rf $(VENV) $(OTHERS) build dist demo-output .cache
