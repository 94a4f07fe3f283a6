# Everything runs in a virtual environment of its own: `make demo` and `make test` need nothing but Python 3.11 to 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most tests wait for processes that they start, so several run at once; torch gets one thread in each, since threads of
# two processes that wait for the same core slow each other down tenfold. A file's tests share fixtures and stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile
INSTALLED := $(VENV)/.installed

.PHONY: help install demo docs site test test-full check format faults mutants wheel clean

help:
	@echo "make demo       edit, measure, judge and report on the bundled checkpoint; no GPU, no network beyond PyPI"
	@echo "make docs       render README, docs, visualizations and reports from the records in results/"
	@echo "make site       the documents as a site, in build/site"
	@echo "make test       install, then the tests"
	@echo "make test-full  the slow tests as well"
	@echo "make check      linter, format, types and who imports whom"
	@echo "make faults     verify faults that are planted on purpose; hours on a CPU, FAULTS='--items 50' for fewer"
	@echo "make mutants    change the rules one operator at a time and see whether tests notice; an hour, MUTANTS='--sample 300' less"
	@echo "make wheel      build the wheel and install it into an empty environment"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "kontext-fast needs Python 3.11 to 3.13; run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# CUDA builds of torch bring the Triton they want; without one, the kernels' tests need it for its interpreter.
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps triton==3.6.0
	touch $@

demo: $(INSTALLED)
	$(BIN)/kontext demo

docs: $(INSTALLED)
	$(BIN)/python -m tools.docs

site: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-full: $(INSTALLED)
	KONTEXT_REQUIRE_BROWSER=1 $(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

MUTANTS ?=
mutants: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutants $(MUTANTS)

FAULTS ?=
faults: $(INSTALLED)
	$(BIN)/python -m research.faults.study --out faults $(FAULTS)

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	build/wheel-check/bin/kontext --version

clean:
	rm -rf build dist mutants .mypy_cache .pytest_cache .ruff_cache
