# Two commands do everything on a fresh machine:
#
#   make demo    set up .venv, fine-tune the five detectors on generated pictures from small
#                packaged weights, compare them: less than 5 minutes on two cores after set-up
#   make test    set up .venv with the test tools, run the tests
#   make setup   only set up .venv
#   make tables  fill the tables of the documentation from the committed results
#   make site    build the documentation as a site, in build/site
#   make release-check    build wheel and sdist, install the wheel elsewhere and try it
#
# Variables, all optional:
#
#   PYTHON=python3.12     the Python (3.11 or newer) that .venv is made from
#   SYSTEM_TORCH=1        use the torch, and whatever else, that PYTHON already has installed
#   PIP_ARGS="..."        more arguments for pip: a mirror, --no-index --find-links DIR, or the
#                         index of CPU-only torch wheels, which saves gigabytes without a GPU
#   MARKERS="not slow"    which tests run (a pytest expression); MARKERS= runs all of them
#   JOBS=2                how many processes run the tests; 0 for none but pytest's own
#   PYTEST_ARGS="..."     more arguments for pytest
#   DEMO_ARGS="..."       more arguments for the demo, such as DEMO_ARGS="--seeds 0 1"
#
# Set-up happens once and again only when pyproject.toml changes; it needs no network when
# everything is installed already.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
MARKERS ?= not slow and not browser
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Waiting threads must not burn the cores that data loading and kernels share.
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup demo test tables site release-check lint types format clean
help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,23p'

setup: $(VENV)/.ready
	@echo "Ready: $(BIN)/detrlab"

demo: $(VENV)/.ready
	$(BIN)/detrlab compare --recipe tiny --output runs/compare/demo $(DEMO_ARGS)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "$(MARKERS)" $(PYTEST_ARGS)

tables: $(VENV)/.ready
	$(BIN)/python benchmarks/findings.py
	$(BIN)/python docs/update_tables.py

site: $(VENV)/.ready-dev
	$(BIN)/python docs/make_site.py build/site-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release-check: $(VENV)/.ready-dev
	$(BIN)/python .ci/release.py build/release

lint: $(VENV)/.ready-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/python -m mypy

format: $(VENV)/.ready-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache src/*.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or \
	  sys.exit(f"detrlab needs Python 3.11 or newer, this is {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
ifneq ($(SYSTEM_TORCH),)
	@# A .pth line rather than --system-site-packages: right for conda and for another venv too.
	@$(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).resolve().parents[1])' \
	  > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/system-torch.pth
endif

# The build tool first and without isolation: then pip asks the network only for what is missing.
define install
	@$(PIP) install --quiet "setuptools>=77" $(PIP_ARGS)
	@echo "Installing detrlab into $(VENV): a few minutes the first time"
	@$(PIP) install --quiet --no-build-isolation --editable "$(1)" $(PIP_ARGS)
	@touch $@
endef

$(VENV)/.ready: pyproject.toml | $(BIN)/python
	$(call install,.[laptop])

$(VENV)/.ready-dev: pyproject.toml | $(BIN)/python
	$(call install,.[laptop$(comma)dev])
	@touch $(VENV)/.ready

comma := ,
