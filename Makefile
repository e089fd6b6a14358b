# `make up` and `make test` do all their own set-up; see the README.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
OLLAMA_PORT ?= 11434
AUTOHEAL_PORT ?= 8787
export OLLAMA_PORT AUTOHEAL_PORT

# Without those of `make up` itself, of ways to an engine that do not depend on its version, and of
# the one that needs Debian's archive, which the older engine's network does not reach.
OLDER_ENGINE_TESTS := tests/e2e/test_autoheal.py tests/e2e/test_healing.py \
    tests/e2e/test_recreate.py tests/e2e/test_swarm.py tests/e2e/test_probe.py tests/faults
OLDER_ENGINE_TEST := $(BIN)/python -m pytest $(OLDER_ENGINE_TESTS) -k "not glibc"

ON_AN_ENGINE := tests/e2e tests/faults tests/monitoring tests/browser
# They mostly wait, for health checks and for models; a file's tests stay in one process.
IN_PARALLEL := --numprocesses 4 --dist loadfile

.PHONY: help up down clean demo test test-unit test-e2e test-engines lint lock bench

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

up:  ## a healthy Ollama watched by autoheal, from nothing
	@$(PYTHON) -m scripts.up

down:  ## stop it; models and images stay
	@docker compose down

clean:  ## remove it all: containers, models, images, the virtual environment
	@docker compose down --volumes --rmi local --remove-orphans
	@docker images --quiet --filter reference='ollama-autoheal/*' | sort -u | xargs -r docker rmi --force
	@rm -rf $(VENV) .logs

demo: $(VENV)/.ready  ## break it on purpose and watch it being healed
	@$(BIN)/python -m scripts.demo

test: lint test-unit test-e2e  ## everything

test-unit: $(VENV)/.ready  ## what needs no engine, in seconds
	$(BIN)/python -m pytest tests/unit tests/gpu

test-e2e: $(VENV)/.ready  ## on a real engine with a real Ollama
	@$(PYTHON) -m scripts.up
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not alone" $(ON_AN_ENGINE)
	$(BIN)/python -m pytest -m alone $(ON_AN_ENGINE)

test-engines: test-e2e  ## the same on this engine, and what matters there on Engine 20.10
	$(BIN)/python -m scripts.engines sh -c '$(OLDER_ENGINE_TEST) $(IN_PARALLEL) -m "not alone" && \
	    $(OLDER_ENGINE_TEST) -m alone'

lint: $(VENV)/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready  ## every figure in the documentation
	$(BIN)/python -m bench.verdicts
	$(BIN)/python -m bench.probe_cost
	$(BIN)/python -m bench.users_cost
	$(BIN)/python -m bench.time_to_kill
	$(BIN)/python -m bench.autoheal_idle
	$(BIN)/python -m bench.many_containers
	$(BIN)/python -m bench.page_cost

lock:  ## write requirements/*.txt anew
	@cd requirements && for set in probe autoheal bundle dev; do \
	    uv pip compile --quiet --no-header --universal --python-version 3.11 --generate-hashes \
	        $$set.in -o $$set.txt; done

$(VENV)/.ready: requirements/dev.txt
	@$(PYTHON) -m scripts.test_tools $(VENV)
	@touch $@
