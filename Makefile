# Everything lives in .venv; the stamps there say what is installed.
.DEFAULT_GOAL := help
.PHONY: help run test bench docs clean
PY := .venv/bin/python
PIP := $(PY) -m pip install -q --no-input --disable-pip-version-check -c constraints.txt

help:
	@echo "make run    distil DMD2 on digits into one step, evaluate it, show table and picture"
	@echo "make test   lint, types, tests"
	@echo "make bench  timings side by side"
	@echo "make docs   pages about systems and the family tree, after a change to what they tell"
	@echo "make clean  remove the environment, builds and caches; runs stay"

.venv/.core: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e .
	@touch $@

.venv/.done: .venv/.core
	$(PIP) -e '.[test]'
	@touch $@

run: .venv/.core
	.venv/bin/limbeck distill dmd2 --on digits --out runs/dmd2-digits --resume

test: .venv/.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup

bench: .venv/.done
	@set -e; for file in benchmarks/[!_]*.py; do echo "== $$file"; $(PY) $$file; done

docs: .venv/.core
	$(PY) -m limbeck.docs

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
