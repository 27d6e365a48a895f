# Every target makes the environment that it needs: Python, its venv module and make are enough.
# PYTHON=python3.13 names another interpreter, DJANGO=6.0 another Django.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The newest Django that this Python can run: 5.2 is the last one for Python 3.11.
DJANGO := $(or $(DJANGO),$(if $(filter 3.11,$(VERSION)),5.2,6.1))
DB ?= sqlite
export DB

VENV := .venv/py$(VERSION)-django$(DJANGO)
BIN := $(CURDIR)/$(VENV)/bin

.PHONY: help demo demo-serve test lint format bench torture states environment clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.demo ## import 28,000 airports through a pipeline, in about a minute (DB=postgres)
	@cd testproject && $(BIN)/python manage.py demo

demo-serve: $(VENV)/.demo ## the same, and leave the admin up
	@cd testproject && $(BIN)/python manage.py demo --serve

test: $(VENV)/.test ## the suite on every database found (ARGS="-k claim" for pytest)
	@$(BIN)/python scripts/matrix.py $(VENV) $(ALSO) -- $(ARGS)

lint: $(VENV)/.lint ## ruff, mypy, import-linter
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.lint ## let ruff repair what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(VENV)/.bench ## compare speed with other queues, on an embedded PostgreSQL
	@$(BIN)/python -m benchmarks $(ARGS)

torture: $(VENV)/.test ## kill, freeze and stop workers for two minutes (DB=postgres ARGS="--seconds 600 --seed 1")
	@$(BIN)/python -m tests.torture $(ARGS)

states: $(VENV)/.test ## redraw docs/states (needs graphviz's dot)
	@$(BIN)/python -c 'from pathlib import Path; from django_dbq.states import draw; draw(Path("docs/states"))'

environment: $(VENV)/.test ## only make the environment; prints its folder, for ALSO= of another test run
	@echo $(VENV)

clean: ## remove the environments, caches and what the demo made
	rm -rf .venv build dist *.egg-info testproject/var
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# An environment is made anew whenever pyproject.toml changes; each target installs its own extra.
$(VENV)/.python: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "django-dbq needs Python 3.11 or newer; $(PYTHON) is $(or $(VERSION),missing) (PYTHON=... names another)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make environments (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.%: $(VENV)/.python
	@echo "Installing django-dbq[$*] and Django $(DJANGO) in $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]' 'Django~=$(DJANGO).0'
	@touch $@
