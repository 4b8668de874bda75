# make demo: the whole road on real images, 2 to 4 minutes on 2 cores after the install.   make test: everything CI runs.
# Needs Python 3.11 or newer, git and make; everything else goes into .venv, in the versions of constraints.txt.

PYTHON ?= python3
STORE ?= demo/runs
PORT ?= 5000
WORKERS ?= 2
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
SERVERS := slow or s3
CLUSTERS := ray or browser or chaos

.PHONY: help install demo ui test lint clean
help:
	@echo "make demo     pack, pretrain, probe, register, pull and embed on scikit-learn's handwritten digits"
	@echo "make ui       MLflow's pages of the demo's runs on http://127.0.0.1:$(PORT) (STORE=<storage folder>, PORT=<port>)"
	@echo "make test     lint, types, import contracts and all tests"
	@echo "make lint     the first three of these"
	@echo "make install  what the others do first, once: .venv with everything in it"
	@echo "make clean    remove caches, build outputs and the demo's runs; not .venv, runs/ or data/"

install: .venv/installed

# The stamp is written last, so an interrupted install is taken up again by the next call.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=<path>" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: about two minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: install
	@$(BIN)/python -m pipelines.demo

ui: install
	@test -f $(STORE)/mlflow.db || { echo "$(STORE)/mlflow.db is not there: run make demo first, or give STORE=<storage folder>"; exit 1; }
	@echo "In a few seconds: http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning   (Ctrl-C ends it)"
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	  $(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri sqlite:///$(STORE)/mlflow.db --artifacts-destination $(STORE)/mlartifacts

# By cost, and the first stage that fails ends it; tests/conftest.py does the same among a process's tests. Two processes
# share the tests of a stage, by files; those on Ray, which keep both cores busy by themselves, have the machine alone.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -m "not ($(SERVERS) or $(CLUSTERS))"
	$(PYTEST) -m "($(SERVERS)) and not ($(CLUSTERS))"
	$(BIN)/python -m pytest -m "$(CLUSTERS)"

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
