# `make` lists the targets. Everything runs in .venv, which `make install` makes: nothing has to be activated.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
BIN := .venv/bin
STAMP := .venv/.installed

# The stamp holds the folder of the installation: a copied or moved clone is installed anew.
ifneq ($(file < $(STAMP)),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): envs/install.sh envs/requirements.in envs/requirements.lock pyproject.toml
	@sh envs/install.sh

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(STAMP) ## .venv with everything in it (python3 >= 3.11 and the package index are needed; 1 to 3 min)

.PHONY: demo
demo: $(STAMP) ## install, then run config/demo.yaml on all cores (12 to 14 min on 2 cores); says where the report is
	@$(BIN)/snakemake --cores all
	@$(BIN)/python workflow/scripts/print_headline.py results/demo

.PHONY: data
data: $(STAMP) ## fetch the real detector frames into $SCATTERFLOW_DATA and check them by hash (8 MB)
	@$(BIN)/python workflow/scripts/fetch_data.py

PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadgroup -p no:benchmark

.PHONY: test
test: $(STAMP) ## install, then all tests: unit, property, science, workflow, a part of Slurm's faults (20 to 30 min on 2 cores)
	$(PYTEST) -m 'not table'

.PHONY: test-failed
test-failed: $(STAMP) ## the tests that failed last time once more, if they are at most 3
	$(BIN)/python -m tests.again $(wordlist 4,99,$(PYTEST))

.PHONY: test-slurm
test-slurm: $(STAMP) ## the whole table of what clusters do, on a real Slurm without and with accounting (20 min on 2 cores)
	$(PYTEST) tests/slurm

.PHONY: check
check: $(STAMP) ## format, lint, types, workflow lint, generated files in sync
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/python -m scatterflow.config.docs --check

.PHONY: bench
bench: $(STAMP) ## benchmarks, each against a named peer in the same run
	$(BIN)/python -m pytest -o python_files='bench_*.py' -s benchmarks

.PHONY: lock
lock: $(STAMP) ## envs/requirements.lock anew from pyproject.toml and envs/requirements.in (newest versions)
	$(BIN)/uv pip compile --quiet --upgrade --config-file envs/uv.toml --custom-compile-command 'make lock' \
		pyproject.toml envs/requirements.in --extra dev --output-file envs/requirements.lock

.PHONY: clean
clean: ## remove .venv and caches; results stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find src tests workflow benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
