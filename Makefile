# Everything runs from a virtual environment in .venv, made on first use. `make` alone lists the targets.
#
#   PYTHON=python3.12     another interpreter (3.11 or newer)
#   ARGS="--set K=V"      more words for the command behind extract, train, pretrain, ablate and demo
#   TORCH=torch==2.13.0   which torch to install; not used where $(PYTHON) has a torch of its own, which is then shared

PYTHON ?= python3
VENV ?= .venv
# A machine without a GPU gets the version whose plain CPU build is known; others get the newest build.
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
OUT ?= caches
ARGS ?=

STILLFRAME := $(VENV)/bin/stillframe
# Errors alone: pip's warnings are about the machine's own configuration, one for every package.
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick chaos fuzz gpu lint docs extract train pretrain ablate clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY) ## make .venv and install stillframe into it

demo: $(READY) ## built-in videos -> cache -> three temporal modules -> report, in demo/
	$(STILLFRAME) demo --out demo $(ARGS)

test: lint ## lint, types and all tests, on up to eight cores: ten minutes on two
	$(PYTEST)

quick: $(READY) ## the tests that are not marked slow: three minutes on two cores
	$(PYTEST) -m "not slow"

chaos: $(READY) ## kill, stop, starve and cut off extractions at hundreds of moments, and print a table
	GOMP_SPINCOUNT=10000 PYTHONPATH=tests $(VENV)/bin/python -m chaos

fuzz: $(READY) ## damage and forge every file of the formats for SECONDS (default 600), or once with SEED
	GOMP_SPINCOUNT=10000 PYTHONPATH=tests $(VENV)/bin/python -m fuzz $(or $(SECONDS),600) $(SEED)

gpu: $(READY) ## test and measure all that runs on a GPU, into gpu/; DEVICE=cpu SMALL=1 tries it without one
	GOMP_SPINCOUNT=10000 PYTHONPATH=tests $(VENV)/bin/python -m gpu --seconds $(or $(SECONDS),480) --out $(RESULTS) \
	  --device $(or $(DEVICE),cuda) $(if $(SMALL),--small) $(if $(WHEELS),--wheels $(WHEELS))

lint: $(READY) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY) ## write docs/reference, and the rooms in the README, from the code
	@$(VENV)/bin/python -m pipeline.cli.reference

extract: $(READY) ## stage one: make extract SPEC=cache_specs/dinov2_small.toml DATA=data/mine
	@$(call need,SPEC) $(call need,DATA) $(STILLFRAME) extract $(SPEC) $(DATA) --out $(OUT) $(ARGS)

train: $(READY) ## stage two: make train RECIPE=demo_gru CACHE=caches/NAME
	@$(call need,RECIPE) $(call need,CACHE) $(STILLFRAME) train $(RECIPE) $(CACHE) $(ARGS)

pretrain: $(READY) ## pre-train without labels: make pretrain CACHE=caches/NAME [RECIPE=pretrain_forecast]
	@$(call need,CACHE) $(STILLFRAME) train $(or $(RECIPE),pretrain_forecast) $(CACHE) $(ARGS)

ablate: $(READY) ## sweep over temporal modules: make ablate [CACHE=caches/NAME] [SWEEP=temporal_modules]; without CACHE the demo's
	@$(if $(CACHE),,test -f $(DEMO_RUN) || $(STILLFRAME) demo --out demo)
	$(STILLFRAME) sweep $(or $(SWEEP),temporal_modules) "$(or $(CACHE),$(DEMO_CACHE))" $(ARGS)

clean: ## remove .venv and the demo
	rm -rf $(VENV) demo

# OUT has a default of its own, for caches.
RESULTS = $(if $(filter file,$(origin OUT)),gpu,$(OUT))

# Threads that wait with a short spin, as in the command itself: long spins starve the others on few cores.
PYTEST = $(IN_MEMORY) GOMP_SPINCOUNT=10000 $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile \
  --no-loadscope-reorder -o tmp_path_retention_policy=failed

# Tests wait for the disk at thousands of files, unless 4 GB of memory can be written to and run programs from.
IN_MEMORY = $(shell ! grep -qs ' /dev/shm .*noexec' /proc/mounts && \
  df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4e6 { print "PYTEST_DEBUG_TEMPROOT=/dev/shm" }')

# There may be several caches beside each other: that of other tasks, those of other versions.
DEMO_RUN := demo/runs/demo_gru/run.json
DEMO_CACHE = $$(sed -n 's/^ *"cache_path": "\(.*\)",*$$/\1/p' $(DEMO_RUN))

need = $(if $($(1)),,echo "make $@: set $(1)=..., see make help" >&2; exit 2;)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stillframe needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(VENV)/bin/python || if $(PYTHON) -c 'import torch' 2>/dev/null; then \
	  echo "$(PYTHON) has a torch of its own: sharing it" && $(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@$(VENV)/bin/python -c 'import torch' 2>/dev/null || { echo "installing $(TORCH) into $(VENV): minutes, without a word" && $(PIP) $(TORCH); }
	$(PIP) -e '.[dev]'
	@touch $@
