# Every target sets itself up: a project-local environment, made once and remade when the pins change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-bench
ZOO    := .venv-models
OUT    := out

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-models lint bench figures clean

help: ## Show this help
	@echo "isometry: Jacobian singular-value spectra of deep networks"
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# The stamp is written last, so an interrupted install is taken up again by the next make.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isometry needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Train a small CNN on real digits, measure its Jacobian before and after, report, draw
	$(BIN)/python figures/demo.py --out $(OUT)

# Two workers of one thread each: two of two would wait for one another. Some thirty interpreters start in all, and each
# worker rewrites the assertions of all tests: compiled modules are kept, whatever the environment says.
test: $(STAMP) ## Run the tests (under five minutes on two cores)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(STAMP) ## Run the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow"

# A CUDA build of several gigabytes, which torchvision and the libraries of models want: not in continuous integration.
$(ZOO)/.installed:
	@$(ZOO)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 timm transformers diffusers \
		torch_geometric torchdiffeq --editable .
	@touch $@

test-models: $(ZOO)/.installed ## Measure some 70 real models against autograd and jacrev (5.5 GB, half an hour)
	OMP_NUM_THREADS=1 $(ZOO)/bin/python tests/models/table.py

lint: $(STAMP) ## ruff, mypy, and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The peers are wanted, not needed: whoever is not installed is reported as missing.
# An environment of their own: one of them brings a torchvision that does not import beside a CPU torch, and with it there
# transformers, which the tests build models from, does not either.
$(PEERS)/.installed: pyproject.toml constraints.txt
	@$(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[data]'
	@$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]' && touch $@ \
		|| echo "peers could not be installed; the benchmarks report them as missing"

bench: $(PEERS)/.installed ## Run the benchmarks at their small sizes (a quarter of an hour)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(PEERS)/bin/python $$script || exit 1; done

figures: $(STAMP) ## Remake every figure at its small default size
	@for script in figures/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## Remove the environments and outputs
	rm -rf $(VENV) $(PEERS) $(ZOO) $(OUT)
