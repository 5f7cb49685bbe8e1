# SEMR: `make demo` shows it, `make test` checks it. Both set up what they need: a virtual environment in .venv and, where
# they are missing, the system packages that helper_scripts/env-prepare.sh names.

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.semr-installed

# uv chooses among the installed Pythons; PYTHON_VERSION=3.11 pins one.
PYTHON_VERSION ?= >=3.10,<3.13
EXTRAS         ?= tensorflow,onnx,dev
TESTS          ?=
PYTEST_ARGS    ?=

# Those that need no stack of their own mostly wait, and do so at the same time.
TESTS_AT_ONCE  := tests/unit tests/charts

# A folder of wheels that pip is told about is offered to uv too (pip separates several by spaces, uv by commas).
empty :=
space := $(empty) $(empty)
comma := ,
ifeq ($(strip $(UV_FIND_LINKS)),)
ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS := $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
endif

.DEFAULT_GOAL := help
# Seconds that building Kubernetes may take; 0 builds nothing and skips the tests where it is not built yet.
CLUSTER_BUILD_SECONDS ?= 2400

.PHONY: help setup demo test test-cluster lint format bench constraints clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP)  ## install everything that demo and test need (they do it by themselves)

$(STAMP): pyproject.toml constraints.txt helper_scripts/env-prepare.sh helper_scripts/find-uv.sh
	helper_scripts/env-prepare.sh
	uv="$$(helper_scripts/find-uv.sh)" && \
	  { [ -x $(PYTHON) ] || "$$uv" venv --quiet --python '$(PYTHON_VERSION)' $(VENV); } && \
	  "$$uv" pip install --python $(PYTHON) --compile-bytecode -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## from nothing to a served model on this machine (KEEP=1 leaves it running)
	$(PYTHON) -m workflow_examples.mnist.demo $(if $(KEEP),--keep)

test: $(STAMP)  ## unit tests, and tests on real servers (TESTS=tests/unit for a part)
ifeq ($(strip $(TESTS)),)
	@status=0; set -x; \
	$(PYTHON) -m pytest -n 3 --dist loadfile $(PYTEST_ARGS) $(TESTS_AT_ONCE) || status=$$?; \
	$(PYTHON) -m pytest $(PYTEST_ARGS) tests/embedded || status=$$?; \
	exit $$status
else
	$(PYTHON) -m pytest $(PYTEST_ARGS) $(TESTS)
endif

test-cluster: $(STAMP)  ## the charts on a Kubernetes API: a test bed built from Go modules, or the cluster of KUBECONFIG
	SEMR_TEST_CLUSTER_BUILD_SECONDS=$(CLUSTER_BUILD_SECONDS) \
	  $(PYTHON) -m pytest -ra $(PYTEST_ARGS) $(if $(TESTS),$(TESTS),tests/cluster)

lint: $(STAMP)  ## ruff, mypy, shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/shellcheck helper_scripts/*.sh .ci/run

format: $(STAMP)  ## bring the code into ruff's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(STAMP)  ## measure start-up, jobs and workflow steps (medians and spread)
	$(PYTHON) -m bench

constraints: $(STAMP)  ## make constraints.txt anew: the newest versions that install together
	"$$(helper_scripts/find-uv.sh)" pip compile --universal --python-version 3.10 --all-extras --upgrade \
	  --no-annotate --no-header --quiet -c constraints.in -o constraints.txt pyproject.toml

clean:  ## remove the environment and caches; data of a stack stay (see `semr down --purge`)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
