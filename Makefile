# Every target sets up what it needs: `make demo` on a bare machine with Python 3.11 is enough.
# The environment is .venv, in this checkout; a second run does not reinstall.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Two workers: clusters and faults in one, engines, browser and all else in the other (tests/conftest.py).
BOTH_CORES := -n 2

# The stamp's name is a hash of all that decides what is installed, so an edit there reinstalls.
INPUTS := pyproject.toml $(sort $(wildcard requirements/*))
STAMP := $(VENV)/.installed-$(shell cat $(INPUTS) | sha256sum | cut -c1-16)
LOG := $(VENV)/install.log

# No model hub, no telemetry, and the engine inside its actor's process (it starts in a third of the time).
export VLLM_ENABLE_V1_MULTIPROCESSING ?= 0
export VLLM_NO_USAGE_STATS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test test-fast test-openapi load bench chaos soak lint audit format doctor clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv and install the pinned requirements

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) not found. Debian: apt install python3.11 python3.11-venv; or: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "Could not create $(VENV). Debian: apt install python3.11-venv"; exit 1; }
	@echo "installing into $(VENV) (2-10 minutes; progress in $(LOG))"
	@requirements/install.sh $(BIN)/python >$(LOG) 2>&1 || { \
	  tail -n 25 $(LOG); \
	  echo; echo "Installation failed; the whole output is in $(LOG)."; \
	  echo "Network or index trouble: set PIP_INDEX_URL or HTTPS_PROXY and run make again, it goes on where it stopped."; \
	  echo "A damaged environment: rm -rf $(VENV), then make again."; exit 1; }
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)  ## train two posteriors and compare them with exact ones (8 minutes)
	$(BIN)/posteriori demo

test: export HF_HUB_OFFLINE ?= 1
test: $(STAMP)  ## all tests
	$(PYTEST) $(BOTH_CORES) --durations=15

test-fast: export HF_HUB_OFFLINE ?= 1
test-fast: $(STAMP)  ## tests without vLLM, Ray, browser, harm or long runs (under 3 minutes)
	$(PYTEST) -m "not slow and not vllm and not ray and not faults and not page and not gpu" $(BOTH_CORES) --durations=10

test-openapi: $(STAMP)  ## thousands of requests made from the OpenAPI document (a few minutes)
	HF_HUB_OFFLINE=1 POSTERIORI_OPENAPI_EXAMPLES=50 $(PYTEST) tests/api/test_openapi.py

load: $(STAMP)  ## 200 clients for a minute against a service on loopback
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.load

bench: $(STAMP)  ## performance ratios, one after the other (docs/performance.md)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.performance

chaos: SECONDS ?= 900
chaos: KILLS ?= 30
chaos: SEED ?= 0
chaos: $(STAMP)  ## a run under random kills, against one left alone (30 minutes; SECONDS=, KILLS=, SEED=)
	FAULTS_CUT_SECONDS=60 $(PYTEST) tests/faults/test_network_cut.py
	$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) --kills $(KILLS) --seed $(SEED) \
	  --directory runs/chaos-$$(date +%Y%m%d-%H%M%S)

soak: SECONDS ?= 3600
soak: $(STAMP)  ## the memory of every process of a run, and whether it grows (an hour; SECONDS=)
	$(BIN)/python -m tests.faults.soak --seconds $(SECONDS) --directory runs/soak-$$(date +%Y%m%d-%H%M%S)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(STAMP)  ## compare all pins with known advisories
	$(BIN)/python requirements/audit $(BIN)/pip-audit

doctor: $(STAMP)  ## check this machine and say what to do about each failure
	$(BIN)/posteriori doctor

clean:  ## remove caches and build products (not .venv, not runs/)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
