# make live    a headless run of the live notebook: the paper venue on recorded data, into runs/<time>
# make test    every gate and every test
# make lab     JupyterLab on the notebooks
# The first of them installs everything into .venv, once. Nothing outside this folder is changed.

CONFIG ?= nbs/live/default.yaml
JOBS   ?= 2
ARGS   ?=
# Asks for an older numpy than vectorbt does, and works with the newer: so it is installed beside the rest, without its own requirements.
PEER   := hftbacktest==2.4.4
ifeq ($(PATH),)
PATH := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
endif
export PATH
ifndef RUN
RUN := runs/$(shell PATH='$(PATH)'; date -u +%Y%m%dT%H%M%SZ)
endif
ifndef PYTHON
PYTHON := $(shell PATH='$(PATH)'; for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# This environment's programs and kernel first.
PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help env live test lab notebooks readme soak bench hooks clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

env: $(STAMP)  ## create .venv and install everything (live, test and lab do this themselves)

$(STAMP): settings.ini setup.py
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "scalp_nb needs Python 3.11 or later; $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1 || echo missing)." \
		"Install one, or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if command -v uv >/dev/null 2>&1 && uv venv --quiet --clear --seed --python "$$(command -v $(PYTHON))" $(VENV) \
		&& uv pip install --quiet --python $(BIN)/python -e '.[all]'; then echo "installed with uv"; \
	else \
		test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || \
			{ echo "python -m venv failed. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
		echo "installing into $(VENV): a minute or two, once"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]'; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(PEER)' 2>/dev/null || \
		echo "no wheel of $(PEER) for this machine: the cross-check against it is left out"
	@touch $@

live: $(STAMP)  ## run the live notebook headless (CONFIG=file.yaml, RUN=folder, ARGS="-p name value")
	@test -f $(CONFIG) || { echo "no configuration $(CONFIG); name one: make live CONFIG=nbs/live/default.yaml" >&2; exit 1; }
	@mkdir -p $(dir $(RUN)) && mkdir $(RUN)
	papermill --engine live --no-progress-bar nbs/live/live_trading.ipynb $(RUN)/live_trading.ipynb -f $(CONFIG) -r run_dir $(RUN) $(ARGS)
	@echo "Report: $(RUN)/live_trading.ipynb"

test: $(STAMP)  ## every gate and every test, in order
	$(BIN)/python tests/gates/run.py --jobs $(JOBS) $(ARGS)

lab: $(STAMP)  ## JupyterLab on the notebooks
	jupyter lab --notebook-dir=nbs $(ARGS)

notebooks: $(STAMP)  ## clean the notebooks and export them to scalp_nb
	nbdev_clean
	nbdev_export

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/gates/readme.py

soak: $(STAMP)  ## the tests that run for hours
	$(BIN)/python -m pytest tests -m soak --timeout 0 $(ARGS)

bench: $(STAMP)  ## benchmarks, each against its baseline
	@for b in tests/bench/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

hooks: $(STAMP)  ## optional: nbdev's git merge driver for notebooks, and a clean on save in Jupyter (writes to ~/.jupyter)
	nbdev_install_hooks

clean:  ## remove the environment and every cache; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .coverage htmlcov
	find nbs scalp_nb tests -name __pycache__ -type d -prune -exec rm -rf {} +
