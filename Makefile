# One command each. The first sets up .venv by itself (scripts/bootstrap.py); later ones start at once.
#
#   PYTHON=python3.12        which Python makes .venv (3.11 to 3.14; default: the first that fits)
#   TORCH=cpu|cuda           which build of torch (default: the one the package index gives)
#   TORCH_INDEX=<address>    package index to take torch from, see README.md
#   BAG=<path>               make demo: play this rosbag2 (mcap or sqlite3) with a camera topic
#   ARGS="..."               more arguments for demo, demo-control, bench or pytest

SHELL := /bin/bash
VENV := $(CURDIR)/.venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
export TORCH TORCH_INDEX

# ROS 2 of .venv and nothing of another one that may be sourced.
unexport LD_LIBRARY_PATH PYTHONPATH PYTHONHOME COLCON_PREFIX_PATH CMAKE_PREFIX_PATH RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE
export VIRTUAL_ENV := $(VENV)
export AMENT_PREFIX_PATH := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
export ROS_LOG_DIR ?= $(CURDIR)/.cache/ros
# Nothing here talks to another machine.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export HF_HUB_OFFLINE := 1
# Several processes share the cores: one thread each, and none that spins while it waits.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export MUJOCO_GL ?= egl

.PHONY: help build demo demo-control test lint slow bench clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## set up .venv and build the messages (all others do this by themselves)
	@command -v "$(PYTHON)" > /dev/null || { echo "thinkjepa_ros needs Python 3.11 to 3.14, and" \
		"$(if $(PYTHON),$(PYTHON) is not on the PATH,none is on the PATH). On Debian and Ubuntu: sudo apt-get install python3 python3-venv python3-dev"; exit 1; }
	@$(PYTHON) scripts/bootstrap.py

demo: build ## play a camera recording through thinker and predictor (BAG=path: your own)
	@thinkjepa demo $(if $(BAG),--bag "$(BAG)") $(ARGS)

demo-control: build ## a simulated robot is asked for a reach and a pick-and-place
	@thinkjepa demo-control $(ARGS)

# Exit status 5 of pytest: nothing to run in this half (ARGS="-k ..." may choose from the other one).
test: lint ## everything CI checks: lint, types, tests
	@python -m pytest -n 2 -m "not alone and not slow and not gpu" $(ARGS) || [ $$? -eq 5 ]
	@python -m pytest -m "alone and not slow and not gpu" $(ARGS) || [ $$? -eq 5 ]

lint: build ## ruff and mypy
	@ruff check .
	@mypy

slow: build ## the tests that take minutes
	@python -m pytest -m "slow and not gpu" $(ARGS)

bench: build ## camera images between two processes, with and without our transport profile
	@thinkjepa bench transport $(ARGS)

clean: ## remove everything that was made or downloaded here
	rm -rf .venv .cache build install log .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
