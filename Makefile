# Every target works on a fresh machine with Python 3.11, its venv module and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IMAGE ?= fencekv:dev
# With a C compiler the modules on the way of a write are compiled: docs/decisions/0007-compiled.md.
COMPILED ?= $(if $(shell command -v cc 2>/dev/null),true,false)
NATIVE := build/compiled/.complete-$(COMPILED)
PACKAGES := client/fencekv operator/fencekv_operator shard/fencekv_shard e2e/fencekv_sandbox
SOURCES := client operator shard e2e tests bench docs manifests native

ifeq (,$(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif

.DEFAULT_GOAL := help

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	$(BIN)/pytest -q -n 2 -m "not slow" tests/client tests/operator tests/shard tests/drills tests/bench

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
	@$(MAKE) --no-print-directory test-compiled

# What runs whole on compiled modules: tests that put their own limits or classes in the place of ours cannot.
COMPILED_TESTS := tests/client/test_codec.py tests/client/test_frames.py tests/client/test_connection.py \
	tests/shard/test_journal.py tests/shard/test_transaction.py tests/shard/test_frames.py \
	tests/shard/test_frames_forward.py tests/shard/test_frames_limits.py tests/shard/test_server_input.py \
	tests/shard/test_server.py tests/shard/test_server_wire.py tests/shard/test_http_answers.py tests/shard/test_fuzz.py \
	tests/crash/test_states.py tests/failover/test_kills.py

test-compiled: $(NATIVE) ## the wires, the journal, crashes and kills on compiled modules, as the image has them
	@echo "== compiled: $(COMPILED) =="
	PYTHONPATH=$(CURDIR)/build/compiled $(BIN)/pytest -q $(COMPILED_TESTS)

STATES ?= 100000

test-crash: install ## opens at least STATES (100000) distinct states that a crash can leave, in a few minutes
	PYTHONPATH=tests/lib $(BIN)/python -m crash --states $(STATES)

test-k8s: install ## the suites of operator, sandbox and failover on a real kube-apiserver (KUBEBUILDER_ASSETS)
	@$(BIN)/python -m fencekv_sandbox.controlplane
	$(BIN)/pytest -q --realapi tests/sandbox tests/operator tests/failover

# In two steps: what the lock file names needs a network, once; this project's own wheel never does. So `make image`
# after `make wheels` works where no index can be reached, also when a source file has changed since.
LOCKED := build/wheels/locked/.complete
OWN := build/wheels/own/.complete-$(COMPILED)
WHEEL_SOURCES := README.md LICENSE $(shell find $(PACKAGES) crds manifests/samples -type f -not -path '*/__pycache__/*')

wheels: $(LOCKED) $(OWN) ## wheels of the lock file and of this project, for the image

$(LOCKED): requirements.lock | $(STAMP)
	@echo "== wheels of the lock file =="
	rm -rf $(@D) && mkdir -p $(@D)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
		-r requirements.lock -w $(@D)
	@touch $@

$(OWN): pyproject.toml native/hook.py $(WHEEL_SOURCES) | $(STAMP)
	@echo "== wheel of this project =="
	rm -rf $(@D) && mkdir -p $(@D)
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=$(COMPILED) \
		$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation . -w $(@D)
	@touch $@

compiled: $(NATIVE) ## this project's packages as the image has them, in build/compiled, to be put on PYTHONPATH

$(NATIVE): $(OWN)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --target $(@D) build/wheels/own/*.whl
	@touch $@

VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
COMMIT = $(shell git describe --always --abbrev=12 --exclude '*' --dirty 2>/dev/null || echo unknown)
BASE ?= python:3.11-slim

image: wheels ## builds the container image of operator, shard and command line (BASE= may name a digest)
	docker build --tag $(IMAGE) --build-arg BASE=$(BASE) --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) .

docs: install ## writes docs/crds.md and docs/metrics.md from the CRDs and the code
	$(BIN)/python docs/generate_crds.py
	$(BIN)/python docs/generate_metrics.py

install-yaml: install ## writes manifests/install.yaml, what `kubectl apply -k manifests/` installs in one file
	$(BIN)/python docs/generate_install.py

e2e: install ## the image in a kind cluster: every drill once, counted (needs docker, kind, kubectl, make image; KEEP=1 keeps it)
	$(BIN)/pytest -q -s e2e

kind: image ## a kind cluster with the image, the operator and the sample; says what to do next (needs docker, kind, kubectl)
	@$(BIN)/python e2e/kind.py up

kind-stop: install ## takes that cluster away
	@$(BIN)/python e2e/kind.py down

drill: install ## one drill on that cluster, or on the one of KUBECONFIG (FAULT=process-killed)
	@$(BIN)/python e2e/drills.py --runs 1 --no-page --fault $(or $(FAULT),process-killed)

drills: install ## all drills, as often as docs/drills.md says, and that page anew (RUNS=5, FAULT=name for a part; some hours)
	@$(BIN)/python e2e/drills.py $(if $(RUNS),--runs $(RUNS)) $(if $(FAULT),--fault $(FAULT))

bench: $(NATIVE) ## the table beside etcd and Redis on the same disk (needs go, KUBEBUILDER_ASSETS; QUICK=1, ROWS=, KEYS=)
	@exec env PYTHONPATH=$(CURDIR)/build/compiled QUICK="$(QUICK)" ROWS="$(ROWS)" KEYS="$(KEYS)" \
		$(BIN)/python -m bench --with-parent $(ARGS)

soak: $(NATIVE) ## one shard at full load for ten minutes: memory, renewals, leases (needs go)
	@exec env PYTHONPATH=$(CURDIR)/build/compiled $(BIN)/python -m bench.soak --with-parent $(ARGS)

lock: ## resolves the lock files anew
	$(BIN)/pip-compile $(LOCKING) -o requirements.lock pyproject.toml
	$(BIN)/pip-compile $(LOCKING) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

LOCKING := --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--strip-extras --allow-unsafe --no-header

clean: ## removes what the other targets made
	rm -rf $(VENV) build dist .fencekv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help install dev check test test-compiled test-crash test-k8s wheels compiled image install-yaml e2e kind kind-stop drill drills bench soak lock docs clean
