PYTHON ?= python3
VENV := .venv
PYTEST := $(VENV)/bin/pytest
# Processes of `make test` and `make test-slow`; each needs about 4 GB. A file's tests mostly stay in one, and share compiled programs.
TEST_WORKERS ?= 2
PARALLEL := -n $(TEST_WORKERS) --dist worksteal
# A file's slow tests all stay in one, as what they share takes minutes. The order of the files is in tests/conftest.py.
PARALLEL_SLOW := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed
CAN_PREPARE := $(VENV)/.can_prepare
CAN_DOCUMENT := $(VENV)/.can_document
HARNESS_VENV := .venv-harness
# 64-bit JAX is a setting of the whole process, so these tests get a process of their own.
X64_TESTS := $(wildcard tests/x64/test_*.py tests/x64/*/test_*.py)

.DEFAULT_GOAL := help
.PHONY: evidence help setup setup-prepare setup-docs setup-harness demo test coverage test-slow test-harness docs lint clean

# An inherited module path would hide what the virtual environment lacks.
unexport PYTHONPATH PYTHONHOME

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv with the pinned libraries and this project (PYTHON=python3.12 picks another Python, after make clean)

$(INSTALLED): requirements.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null \
	  || { echo "error: no '$(PYTHON)' found: install Python 3.11 to 3.13, or name one with PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "error: '$(PYTHON)' is not Python 3.11, 3.12 or 3.13: install one and name it, as in make setup PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: '$(PYTHON)' cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-deps -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

setup-prepare: $(CAN_PREPARE) ## add TensorFlow to it, to prepare the full-size data sets

$(CAN_PREPARE): $(INSTALLED) requirements-prepare.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps -r requirements-prepare.txt
	@touch $@

setup-docs: $(CAN_DOCUMENT) ## add MkDocs to it, to build the documentation

$(CAN_DOCUMENT): $(INSTALLED) requirements-docs.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps -r requirements-docs.txt
	@touch $@

setup-harness: $(HARNESS_VENV)/.installed ## create .venv-harness with the official harness's jax, flax and optax

$(HARNESS_VENV)/.installed: $(INSTALLED) requirements-harness.txt
	$(VENV)/bin/python -m venv --clear $(HARNESS_VENV)
	$(HARNESS_VENV)/bin/python -m pip install --quiet --no-deps -r requirements-harness.txt
	@touch $@

demo: setup ## train one model on molecules with K-FAC-reduce; results under experiments/demo
	$(VENV)/bin/python scripts/run_trial.py --workload=b3db --submission_path=submissions/kfac_reduce \
	  --experiment_dir=experiments --experiment_name=demo --overwrite

evidence: setup ## compare all submissions by docs/evidence.md, for hours; it continues (EVIDENCE_FLAGS=... for fewer trials)
	$(VENV)/bin/python scripts/run_evidence.py $(EVIDENCE_FLAGS)

test: setup ## run the tests, without the slow ones
	JAX_ENABLE_X64=0 $(PYTEST) -q $(PARALLEL)
	$(if $(X64_TESTS),JAX_ENABLE_X64=1 $(PYTEST) -q $(PARALLEL) tests/x64)

# pytest ends with 5 when it selects no test: a suite without slow tests is no failure.
coverage: setup ## run the tests, without the slow ones, and list the lines that none of them reaches
	JAX_ENABLE_X64=0 $(PYTEST) -q $(PARALLEL) --cov --cov-report=
	$(if $(X64_TESTS),JAX_ENABLE_X64=1 $(PYTEST) -q $(PARALLEL) --cov --cov-append --cov-report= tests/x64)
	$(VENV)/bin/coverage report

test-slow: setup-prepare setup-docs setup-harness ## run the slow tests, for which TensorFlow and MkDocs are added
	$(if $(X64_TESTS),JAX_ENABLE_X64=1 $(PYTEST) -q $(PARALLEL_SLOW) -m slow tests/x64 || [ $$? -eq 5 ])
	JAX_ENABLE_X64=0 $(PYTEST) -q $(PARALLEL_SLOW) -m slow || [ $$? -eq 5 ]

test-harness: setup setup-harness ## run the submissions on the official runner's contract, today's libraries and its own
	JAX_ENABLE_X64=0 $(PYTEST) -q -m "slow or not slow" tests/harness

docs: setup-docs ## build the documentation into site/, and check its links
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

lint: setup ## check the code's style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove .venv, build outputs and caches; experiments/ stays
	rm -rf $(VENV) $(HARNESS_VENV) .coverage build site dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
