# A newcomer's whole vocabulary. Every target sets up what it needs; running one twice does nothing twice.
#
#   make demo                    the whole loop on this machine: measure, remember, learn, predict, decide, act
#   make demo CSV=FILE TZ=ZONE   the same for a recorded CSV; naive times are read in the IANA zone TZ
#   make up                      start the mesh and leave it running (Ctrl-C ends it)
#   make test                    all tests but the slow ones       make test-all   the slow ones too
#   make check                   format, lint, types, contract, imports, deployables: under a minute
#   make bench                   our numbers beside the floor of this machine (ONLY=name for one)
#   make protos                  generate libs/twinmesh from protos/
#   make setup                   only install; ARGS="..." is passed on to demo, up, test and bench

VENV ?= .venv
RUN := $(VENV)/bin
# The first interpreter that really runs: a version manager's shim may exist without its version.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP_FLAGS := --disable-pip-version-check --no-input --quiet --retries 5
NOT_COMPILED := /(tests?|_internal|_inductor|sympy|matplotlib|networkx|fontTools)/
# One stamp per content of the two files that decide what is installed.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
# Processes that `make test` runs in; each starts servers of its own.
JOBS ?= 2
# A zone in the environment is this machine's, not the file's: only `make demo TZ=...` counts.
DEMO_TZ := $(if $(filter command line,$(origin TZ)),$(TZ))
unexport TZ CSV

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-all check bench protos

help:
	@sed -n '3,11s/^# \{0,2\}//p' Makefile

setup: $(STAMP)
	@$(RUN)/python -m twinmesh_local setup

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "setup: no Python 3.11 or newer found; install it or say PYTHON=/path/to/python"; exit 1; }
	@echo "[setup]    installing into $(VENV) with $(PYTHON), pinned by constraints.txt (minutes the first time)"
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "setup: Python's venv module does not work; on Debian: apt-get install python3-venv"; exit 1; }
	@$(RUN)/python -m pip install $(PIP_FLAGS) --upgrade pip
	@$(RUN)/python -m pip install $(PIP_FLAGS) --no-compile -c constraints.txt -e '.[dev]'
	@# pip would compile on one core all that is there, which takes longer than fetching it; what nobody imports can wait.
	@$(RUN)/python -m compileall -q -j 0 -x '$(NOT_COMPILED)' $(VENV)/lib || :
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup
	@$(RUN)/twinmesh demo $(if $(CSV),--csv '$(CSV)') $(if $(DEMO_TZ),--tz '$(DEMO_TZ)') $(ARGS)

up: setup
	@$(RUN)/twinmesh up $(ARGS)

test: setup
	@$(RUN)/python -m pytest tests -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: setup
	@TWINMESH_LAWS=thorough $(RUN)/python -m pytest tests $(ARGS)

check: $(STAMP)
	@$(RUN)/python tools/check.py $(ARGS)

bench: setup
	@$(RUN)/python tools/bench.py $(ONLY) $(ARGS)

protos: $(STAMP)
	@$(RUN)/python tools/protogen.py
