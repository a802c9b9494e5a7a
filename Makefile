# Everything here sets itself up: Python >= 3.11 and make are enough. `make help` lists the targets.
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# the first that runs and is new enough: a shim of a version manager may exist and not run
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
DATA ?=
ARGS ?=
DEMOS ?= runs/demos/lift.zarr
RUN := runs/$(shell date +%Y-%m-%d_%H-%M-%S)_demo
# steps of the hand that an arm's acceleration can follow
STEPS := env.control.pos_step=0.012 env.control.rot_step=0.06

.DEFAULT_GOAL := help
.PHONY: help install demo demo-pusht test ros-test lint clean check-data no-data

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables: DATA=<zarr>  ARGS='<more settings or options>'  DEMOS=<zarr>  VENV=<folder>  PYTHON=<interpreter>"

install: $(STAMP)  ## create .venv with the pinned versions (the other targets do it when it is needed)

demo: no-data $(STAMP)  ## teach an arm to lift a cube: demonstrations, imitation, PPO with delays, then 10 episodes over ROS 2 [ARGS='seed=1']
	@$(BIN)/visuomotor data generate task=lift $(STEPS) episodes=300 "out=$(DEMOS)"
	@$(BIN)/visuomotor train task=lift $(STEPS) policy=flow "data=$(DEMOS)" train.steps=2000 eval.episodes=50 "run_dir=$(RUN)/imitation" $(ARGS)
	@$(BIN)/visuomotor finetune "checkpoint=$(RUN)/imitation" randomization=interface likelihood=noisy likelihood.steps=2 budget.minutes=3 "run_dir=$(RUN)/finetuned"
	@BIN=$(BIN) scripts/rehearse.sh "$(RUN)/finetuned" $(STEPS)

demo-pusht: check-data $(STAMP)  ## the same from the human Push-T demonstrations: make demo-pusht DATA=<zarr>
	@$(BIN)/visuomotor train task=pusht "data=$(DATA)" $(ARGS)

test: $(STAMP)  ## run the tests: make test [ARGS='tests/data -k store']
	@$(BIN)/pytest $(ARGS)

ros-test: $(STAMP)  ## the bridge on real ROS 1 and ROS 2, which this installs in .ros (1.1 GB) and by apt [ARGS='-k kilted']
	@PYTHON=$(BIN)/python REQUIRE_ROS=1 scripts/make_ros_venvs.sh
	@REQUIRE_ROS=1 $(BIN)/pytest -m 'ros or slow' tests/sim2real/transports tests/sim2real/test_faults_middleware.py $(ARGS)

lint: $(STAMP)  ## style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy tests

clean:  ## remove .venv, build products and tool caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-data:
	@[ -n '$(DATA)' ] || { echo "make demo-pusht: say where the demonstrations are: make demo-pusht DATA=path/to/pusht_cchi_v7_replay.zarr"; exit 2; }
	@[ -e '$(DATA)' ] || { echo "make demo-pusht: DATA='$(DATA)' does not exist (seen from $(CURDIR))"; exit 2; }

no-data:
	@[ -z '$(DATA)' ] || { echo "make demo makes its own demonstrations; for Push-T: make demo-pusht DATA='$(DATA)'"; exit 2; }

# pip itself is the target, so a half-made environment (no ensurepip) is made again.
$(BIN)/pip:
	@[ -n "$(PYTHON)" ] || { echo "no Python >= 3.11 found: install Python 3.11, or give PYTHON=<interpreter>"; exit 2; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is too old: Python >= 3.11 is needed; give PYTHON=<interpreter>"; exit 2; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

# gym-pusht pins the OpenCV that has a GUI, which would overwrite the headless one: hence --no-deps. The extra brings the rest.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into $(VENV) (about 3 GB, a minute or two) ..."
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[dev,pusht]'
	@$(PIP) --no-deps gym-pusht
	@touch $@
