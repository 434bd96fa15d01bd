# Every target works on a fresh machine with Python 3.11, its venv module and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IMAGE ?= fencekv:dev
PACKAGES := client/fencekv operator/fencekv_operator shard/fencekv_shard e2e/fencekv_sandbox
SOURCES := client operator shard e2e tests bench docs

ifeq (,$(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif

.DEFAULT_GOAL := help

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## makes .venv from the lock file, and nothing else

$(STAMP): requirements-dev.lock pyproject.toml
	@echo "== virtual environment =="
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

dev: install ## starts a cluster of processes: API server, operator, three shards, a sample; shows a failover
	$(BIN)/fencekv dev $(ARGS)

check: install ## lint, types, layers and the fast tests
	@echo "== lint =="
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/codespell --quiet-level 3 README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs client operator shard
	@echo "== types =="
	$(BIN)/mypy
	@echo "== layers =="
	$(BIN)/lint-imports
	@echo "== fast tests =="
	$(BIN)/pytest -q -n 2 -m "not slow" tests/client tests/operator tests/shard tests/bench

test: check ## everything that needs no cluster: check, then sandbox, simulation, crashes and failover
	@echo "== slow tests of the parts =="
	$(BIN)/pytest -q -n 2 -m slow tests/client tests/operator tests/shard tests/bench
	@echo "== sandbox =="
	$(BIN)/pytest -q -n 2 tests/sandbox
	@echo "== simulation =="
	$(BIN)/pytest -q -n 2 tests/simulation
	@echo "== crash =="
	$(BIN)/pytest -q -n 2 tests/crash
	@echo "== failover =="
	$(BIN)/pytest -q tests/failover

STATES ?= 100000

test-crash: install ## opens at least STATES (100000) distinct states that a crash can leave, in a few minutes
	PYTHONPATH=tests/lib $(BIN)/python -m crash --states $(STATES)

test-k8s: install ## the suites of operator, sandbox and failover on a real kube-apiserver (KUBEBUILDER_ASSETS)
	@$(BIN)/python -m fencekv_sandbox.controlplane
	$(BIN)/pytest -q --realapi tests/sandbox tests/operator tests/failover

# In two steps: what the lock file names needs a network, once; this project's own wheel never does. So `make image`
# after `make wheels` works where no index can be reached, also when a source file has changed since.
LOCKED := build/wheels/locked/.complete
OWN := build/wheels/own/.complete
WHEEL_SOURCES := README.md LICENSE $(shell find $(PACKAGES) crds manifests/samples -type f -not -path '*/__pycache__/*')

wheels: $(LOCKED) $(OWN) ## wheels of the lock file and of this project, for the image

$(LOCKED): requirements.lock | $(STAMP)
	@echo "== wheels of the lock file =="
	rm -rf $(@D) && mkdir -p $(@D)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
		-r requirements.lock -w $(@D)
	@touch $@

$(OWN): pyproject.toml $(WHEEL_SOURCES) | $(STAMP)
	@echo "== wheel of this project =="
	rm -rf $(@D) && mkdir -p $(@D)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation . -w $(@D)
	@touch $@

image: wheels ## builds the container image of operator, shard and command line
	docker build --tag $(IMAGE) .

e2e: install ## the image in a kind cluster: failovers, counted (needs docker, kind, kubectl, make image; KEEP=1 keeps it)
	$(BIN)/pytest -q -s e2e

bench: install ## the table beside etcd and Redis on the same disk (needs go, KUBEBUILDER_ASSETS; QUICK=1, ROWS=, KEYS=)
	@QUICK="$(QUICK)" ROWS="$(ROWS)" KEYS="$(KEYS)" $(BIN)/python -m bench $(ARGS)

soak: install ## one shard at full load for ten minutes: memory, renewals, leases (needs go)
	@$(BIN)/python -m bench.soak $(ARGS)

lock: ## resolves the lock files anew
	$(BIN)/pip-compile $(LOCKING) -o requirements.lock pyproject.toml
	$(BIN)/pip-compile $(LOCKING) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

LOCKING := --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--strip-extras --allow-unsafe --no-header

clean: ## removes what the other targets made
	rm -rf $(VENV) build dist .fencekv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help install dev check test test-crash test-k8s wheels image e2e bench soak lock clean
