# Everything here works on a fresh Debian 12 (or any Linux with Python 3.11 or newer and apt-get):
# each target sets up what it needs, once.

VENV ?= .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
SEEDS ?= 0:100

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage lint docs bench fuzz soak clean
.PHONY: postgresql prometheus chromium kubernetes

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Create the virtual environment and install babysit into it

$(READY): pyproject.toml constraints.txt scripts/setup
	@scripts/setup $(VENV)
	@touch $@

postgresql:
	@scripts/postgresql

prometheus:
	@scripts/prometheus

chromium:
	@scripts/chromium

kubernetes:
	@scripts/kubernetes

demo: $(READY) ## Train a small GPT through five injected failures, without human help (about 3 minutes)
	@$(VENV)/bin/babysit demo

# Kubernetes' servers are built, once, beside the first tests; those that need them come late, and wait.
# Where they cannot be built, these tests are skipped, and say so at the end.
test: $(READY) postgresql prometheus chromium ## Run all tests
	@scripts/kubernetes & $(PYTHON) -m pytest $(COVERAGE); code=$$?; wait; exit $$code

coverage: COVERAGE := --cov --cov-report=
coverage: test ## Run all tests, more slowly, and print the coverage
	@echo "coverage: $$($(PYTHON) -m coverage report --format=total) % of lines and branches"

lint: $(READY) ## Check style, formatting, types and the import contracts
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy
	@$(VENV)/bin/lint-imports --no-logo

$(DOCS_READY): $(READY)
	@scripts/setup $(VENV) docs
	@touch $@

docs: $(DOCS_READY) ## Build the documentation site into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
	@echo "open site/index.html"

bench: $(READY) postgresql ## Run every benchmark (not its support/); the last line of each is one JSON object
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(PYTHON) "$$file"; done

fuzz: $(READY) ## Run the whole control plane under injected faults, one history per seed: SEEDS=0:100; FUZZ=options
	@$(PYTHON) -m orchestrator.fuzz $(SEEDS) $(FUZZ)

soak: $(READY) ## Run healthy but awkward runs for half an hour; an intervention fails: SOAK="--minutes 5 --kinds all"
	@$(PYTHON) -m benchmarks.soak $(SOAK)

clean: ## Remove caches and outputs (the virtual environment stays: remove .venv yourself)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* \
	  build dist demo-output site
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
