# SEMR: `make demo` shows it, `make test` checks it. Both set up what they need: a virtual environment in .venv and, where
# they are missing, the system packages that helper_scripts/env-prepare.sh names.

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.semr-installed
# PyTorch is large (4.5 GB on Linux, most of it for GPUs), and only the QoE example needs it: `make demo` does without.
TORCH_STAMP := $(VENV)/.semr-torch-installed

# uv chooses among the installed Pythons; PYTHON_VERSION=3.11 pins one.
PYTHON_VERSION ?= >=3.10,<3.13
EXTRAS         ?= stack,tensorflow,onnx,dev
TESTS          ?=
PYTEST_ARGS    ?=
# Seconds that building Kubernetes for test-cluster may take; 0 builds nothing and skips the tests where it is not built yet.
CLUSTER_BUILD_SECONDS ?= 2400

# Those that need no stack of their own mostly wait, and do so at the same time.
TESTS_AT_ONCE  := tests/unit tests/charts
# Stacks that tests/embedded has at once; each takes up to 5 GB of memory. One that is reused is one.
STACKS_AT_ONCE ?= $(if $(SEMR_TEST_STACK),0,2)
# Test beds that tests/cluster has at once; on an existing cluster its tests would be in each other's way.
BEDS_AT_ONCE   ?= $(if $(KUBECONFIG),0,2)

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
.PHONY: help setup torch demo test test-scripts test-cluster test-images lint format bench constraints clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP)  ## install what demo needs (it does so by itself)

torch: $(TORCH_STAMP)  ## install PyTorch too, for the QoE example (make test does so by itself)

$(STAMP): pyproject.toml constraints.txt helper_scripts/env-prepare.sh helper_scripts/find-uv.sh
	helper_scripts/env-prepare.sh
	uv="$$(helper_scripts/find-uv.sh)" && \
	  { [ -x $(PYTHON) ] || "$$uv" venv --quiet --python '$(PYTHON_VERSION)' $(VENV); } && \
	  "$$uv" pip install --python $(PYTHON) --compile-bytecode -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# Rebuilt after every change of the rest, so that both fit together; in a moment when all is there.
$(TORCH_STAMP): $(STAMP)
	"$$(helper_scripts/find-uv.sh)" pip install --python $(PYTHON) --compile-bytecode -c constraints.txt -e '.[$(EXTRAS),torch]'
	@touch $@

demo: $(STAMP)  ## from nothing to a served model on this machine (KEEP=1 leaves it running)
	$(PYTHON) -m workflow_examples.mnist.demo $(if $(KEEP),--keep)

test: $(TORCH_STAMP)  ## unit tests, and tests on real servers (TESTS=tests/unit for a part)
ifeq ($(strip $(TESTS)),)
	@status=0; set -x; \
	$(PYTHON) -m pytest -n 3 --dist loadfile $(PYTEST_ARGS) $(TESTS_AT_ONCE) || status=$$?; \
	$(PYTHON) -m pytest -n $(STACKS_AT_ONCE) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) tests/embedded || status=$$?; \
	exit $$status
else
	$(PYTHON) -m pytest $(PYTEST_ARGS) $(TESTS)
endif

test-scripts:  ## tests of the scripts that install and remove (bats; with Ansible also the playbooks)
	tests/scripts/run.sh

test-images: $(STAMP)  ## build the images from a local base and run them (root; buildah, podman, runc, debootstrap)
	$(PYTHON) -m pytest $(PYTEST_ARGS) tests/images

test-cluster: $(STAMP)  ## the charts' pods on real servers, and the charts on a Kubernetes API (a test bed, or the cluster of KUBECONFIG)
	SEMR_TEST_CLUSTER_BUILD_SECONDS=$(CLUSTER_BUILD_SECONDS) \
	  $(PYTHON) -m pytest -ra -n $(BEDS_AT_ONCE) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) $(if $(TESTS),$(TESTS),tests/servers tests/cluster)

lint: $(STAMP)  ## ruff, mypy, shellcheck, hadolint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/shellcheck helper_scripts/*.sh docker_build/*.sh tests/scripts/*.sh .ci/run
	$(VENV)/bin/hadolint docker_build/*/Dockerfile

format: $(STAMP)  ## bring the code into ruff's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(TORCH_STAMP)  ## measure start-up, jobs, workflows and serving (medians and spread)
	$(PYTHON) -m bench

constraints: $(STAMP)  ## make constraints.txt anew: the newest versions that install together
	"$$(helper_scripts/find-uv.sh)" pip compile --universal --python-version 3.10 --all-extras --upgrade \
	  --no-annotate --no-header --quiet -c constraints.in -o constraints.txt pyproject.toml

clean:  ## remove the environment and caches; data of a stack stay (see `semr down --purge`)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
