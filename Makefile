# make lab | run | test | clean: each prepares .venv when it is missing or older than the settings.
VENV := .venv
BIN := $(VENV)/bin
DIR ?= workspace
OUT ?= out
PIP_ARGS ?=
IDS ?=
ARGS ?=
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11 python,$(shell $(python) -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $(python))))

.PHONY: help lab run test prove notebooks readme clean setup
help:
	@echo "make lab    open the course in JupyterLab (ARGS=--no-browser)"
	@echo "make run    execute all notebooks into $(OUT)/ (IDS='02a 02_0')"
	@echo "make test   run all tests"
	@echo "make clean  remove $(VENV), caches and build files; never your workspace"

setup: $(VENV)/.installed

$(VENV)/.installed: settings.ini setup.py constraints.txt
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || { echo "klue_course needs Python 3.11, 3.12 or 3.13; $(if $(PYTHON),$(PYTHON) is $$("$(PYTHON)" --version 2>&1 || true),none was found). Try: make $(or $(firstword $(MAKECMDGOALS)),lab) PYTHON=/path/to/python3.12" >&2; exit 2; }
	@"$(BIN)/python" -c '$(SUPPORTED)' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	"$(BIN)/python" -m pip install --quiet $(PIP_ARGS) -e '.[dev]' -c constraints.txt
	@touch $@

lab: setup
	"$(BIN)/klue-course" lab "$(DIR)" -- $(ARGS)

run: setup
	"$(BIN)/klue-course" run $(IDS) --out "$(OUT)" $(ARGS)

test: setup
	"$(BIN)/python" -m pytest $(ARGS)

# Kills, fuzzing and benches: slow, for before a release.
prove: setup
	"$(BIN)/python" -m pytest -m prove $(ARGS)
	"$(BIN)/klue-course" bench

# For authors: export, execute in place, clean, measure, write the README files.
notebooks: setup
	"$(BIN)/python" -m tests.refresh $(IDS)

readme: setup
	"$(BIN)/python" -m tests.refresh --readme

clean:
	rm -rf $(VENV) "$(OUT)" build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
