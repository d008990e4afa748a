# Everything starts from Python 3.11 or newer and make: each target makes its own virtual environment.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
OUT ?= out

.DEFAULT_GOAL := help
.PHONY: help convergence stability stiff verify claims reproduce test slow check format wheel speed analysis gpu docs clean

help:
	@echo "make convergence   measure the continuum limit on real input (results in $(OUT)/)"
	@echo "make stability     largest stable steps and maps of stability"
	@echo "make stiff         what each solver costs on a stiff field"
	@echo "make test          run the tests"
	@echo "make verify        check this machine's numbers against closed forms"
	@echo "make slow          run the tests of more than about five seconds, which CI runs too"
	@echo "make check         formatting, lint and types"
	@echo "make speed         speed and memory benchmarks (installs PyTorch)"
	@echo "make gpu           all that is measured on a GPU (needs one)"
	@echo "make claims        a verdict on every claim of the papers, recomputed"
	@echo "make reproduce     the papers' experiments, and one page of the results"
	@echo "make analysis      what the analyses cost beside scikit-learn and NumPy"
	@echo "make docs          the documentation site, in site/"
	@echo "make wheel         build the wheel and compare its contents"
	@echo "Another Python:    make test PYTHON=python3.13"

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pdejax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Use: make ... PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

convergence: $(VENV)/.base
	$(BIN)/python benchmarks/convergence.py --out $(OUT) $(ARGS)

stability: $(VENV)/.base
	$(BIN)/python benchmarks/stability.py --out $(OUT) $(ARGS)

stiff: $(VENV)/.base
	$(BIN)/python benchmarks/stiff.py --out $(OUT) $(ARGS)

claims: $(VENV)/.base
	$(BIN)/pdejax claims --out $(OUT) $(ARGS)

reproduce: $(VENV)/.base
	$(BIN)/pdejax reproduce --out $(OUT)/reproduce $(ARGS)
	$(BIN)/pdejax report $(OUT)/reproduce

analysis: $(VENV)/.base
	$(BIN)/python benchmarks/analysis.py --out $(OUT) $(ARGS)

verify: $(VENV)/.base
	$(BIN)/pdejax verify $(ARGS)

# Rewritten and instrumented sources are kept: to make them anew takes ten seconds of every process, of each of the tests' own too.
test slow: export PYTHONDONTWRITEBYTECODE =
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

slow: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m slow $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_layout.py -m wheel $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

speed: $(VENV)/.bench
	$(BIN)/python benchmarks/speed.py --out $(OUT) $(ARGS)

gpu: $(VENV)/.base
	$(BIN)/python benchmarks/gpu.py --out $(OUT) $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .jax_cache .cache site
