# Everything here runs as root on Debian 12: it installs the packages it needs, mounts loop devices and boots machines.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test check lint bench zdu powercut vmcuts rehearse test-long clean
help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.ready .packages ## the main job in a virtual machine: stage, activate, confirm, roll back, fall back
	$(RUN) -m vagrant.demo

test: $(VENV)/.ready .packages lint ## all tests (devices, mounts and virtual machines included)
	@tools/install-system-packages tests databases sites bench
	$(RUN) -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder

check: lint .packages ## linters, types, the direction of imports, the docs
	$(RUN) -m pytest -q tests/test_house.py tests/docs

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy

test-long: $(VENV)/.ready .packages ## what `make test` leaves out: a whole night in a machine, Vagrant, faults, troubles of a whole ZDU, deaths at every point
	@tools/install-system-packages tests databases sites vagrant
	$(RUN) -m pytest -q -n 0 -m long

bench: $(VENV)/.ready .packages ## measure against peers; ends with one line per figure
	tools/install-system-packages databases sites bench
	$(RUN) -m bench

zdu: $(VENV)/.ready .packages ## rehearse a whole zero-downtime upgrade under calls: make zdu N=20000 RATE=105
	@tools/install-system-packages databases sites
	$(RUN) -m tests.zdu.whole $(N) $(RATE)

zdu: N ?= 20000
RATE ?= 105

powercut: $(VENV)/.ready .packages ## cut the power at N writes of recorded upgrades, check what is left: make powercut N=5000
	$(RUN) -m vagrant.cuts $(N)

powercut: N ?= 5000

vmcuts: $(VENV)/.ready .packages ## switch a machine off at N random moments of its upgrades: make vmcuts N=20
	$(RUN) -m vagrant.outages $(N)

vmcuts: N ?= 20

rehearse: $(VENV)/.ready .packages ## a whole zero-downtime upgrade on four virtual machines, with calls and reboots
	@tools/install-system-packages databases sites
	$(RUN) -m vagrant.rehearsal.sites

clean: ## remove the virtual environment (the lab's cache is under /var/cache/updater-lab)
	rm -rf $(VENV)

.PHONY: .packages
.packages:
	@tools/install-system-packages lab

$(VENV)/.ready: pyproject.toml
	@tools/install-system-packages python
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable .[dev]
	@touch $@
