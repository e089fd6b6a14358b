# `make up` and `make test` do all their own set-up; see the README.

PYTHON ?= $(or $(firstword $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; \
    do command -v $$name; done)),$(error Python 3.11 or newer is needed, and python3 was not found. Or run: make PYTHON=/path/to/python3.11))
VENV := .venv
BIN := $(VENV)/bin
OLLAMA_PORT ?= 11434
AUTOHEAL_PORT ?= 8787
export OLLAMA_PORT AUTOHEAL_PORT

# Without those of `make up` itself, and of ways to an engine that do not depend on its version.
OLDER_ENGINE_TESTS := tests/e2e/test_autoheal.py tests/e2e/test_healing.py \
    tests/e2e/test_recreate.py tests/e2e/test_swarm.py tests/e2e/test_probe.py tests/faults
OLDER_ENGINE_TEST := $(BIN)/python -m pytest $(OLDER_ENGINE_TESTS)

ON_AN_ENGINE := tests/e2e tests/faults tests/monitoring tests/browser
# They mostly wait, for health checks and for models.
IN_PARALLEL := --numprocesses 6 --dist worksteal --durations 10

.PHONY: help up down clean demo test test-more test-unit test-e2e test-e2e-more test-engines lint \
    lock bench

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

up:  ## start Ollama and autoheal; installs what is missing
	@$(PYTHON) -m scripts.up

down:  ## stop and remove both services; keeps models and images
	@$(PYTHON) -m scripts.down

clean:  ## remove everything that `make` created, models included
	@$(PYTHON) -m scripts.down --clean

demo: $(VENV)/.ready  ## freeze a model and watch autoheal heal it
	@$(BIN)/python -m scripts.demo

test:  ## set up, then lint, unit tests and tests on an engine
	@$(PYTHON) -m scripts.test

test-more:  ## long tests: crashes, many containers, fresh machines, Engine 20.10
	@$(PYTHON) -m scripts.test --more

test-unit: $(VENV)/.ready  ## unit tests; no engine needed
	@$(PYTHON) -m scripts.dev_env unit
	$(BIN)/python -m pytest --numprocesses auto --durations 10 tests/unit tests/gpu

test-e2e: $(VENV)/.ready  ## tests on a real engine with a real Ollama
	@$(PYTHON) -m scripts.dev_env engine
	@$(PYTHON) -m scripts.up
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not more" $(ON_AN_ENGINE)

test-e2e-more: $(VENV)/.ready
	@$(PYTHON) -m scripts.up
	$(BIN)/python -m pytest $(IN_PARALLEL) -m more $(ON_AN_ENGINE)

test-engines: $(VENV)/.ready  ## tests on Engine 20.10
	@$(PYTHON) -m scripts.up
	$(BIN)/python -m scripts.older_engine $(OLDER_ENGINE_TEST) $(IN_PARALLEL) \
	    -m "not more or every_engine"

lint: $(VENV)/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready  ## the figures in the documentation
	$(BIN)/python -m bench.verdicts
	$(BIN)/python -m bench.probe_cost
	$(BIN)/python -m bench.users_cost
	$(BIN)/python -m bench.time_to_kill
	$(BIN)/python -m bench.heal
	$(BIN)/python -m bench.autoheal_idle
	$(BIN)/python -m bench.many_containers
	$(BIN)/python -m bench.page_cost

lock:  ## update requirements/*.txt (needs uv)
	@cd requirements && for set in probe autoheal bundle dev; do \
	    uv pip compile --quiet --no-header --universal --python-version 3.11 --generate-hashes \
	        $$set.in -o $$set.txt; done

$(VENV)/.ready: requirements/dev.txt
	@$(PYTHON) -m scripts.dev_env venv $(VENV)
	@touch $@
