# make demo and make test need python3 (3.11 or newer), make, and a network for pip.
PYTHON ?= python3
ARGS ?=

.PHONY: help demo test slow notebooks lint clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /make \1 - /'

demo: .venv/installed  ## Train two VAEs on handwritten digits, evaluate and draw them, write a page (ARGS="--seed 1" adds options)
	@.venv/bin/pyro-vae demo $(ARGS)

test: lint  ## Run ruff, mypy, the tests and the doctests (ARGS="-x -k prior" goes to pytest)
	@.venv/bin/python -m pytest $(ARGS)

slow: .venv/installed  ## Run the tests that take minutes
	@.venv/bin/python -m pytest -m slow $(ARGS)

notebooks: .venv/installed  ## Execute the notebooks in full and keep their outputs
	@.venv/bin/python notebooks/execute.py

lint: .venv/installed  ## Run ruff and mypy
	@.venv/bin/python -m ruff check
	@.venv/bin/python -m ruff format --check
	@.venv/bin/python -m mypy

clean:  ## Remove .venv, builds and caches; runs/ stays
	$(if $(wildcard .venv/made-by-make),$(EMPTY_VENV) && rm -rf .venv)
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
	find pyro_vae models guides tests -name __pycache__ -prune -exec rm -rf {} +

# .venv/made-by-make is written before anything else and holds the checkout's path,
# .venv/installed after everything else. A venv that was half made or moved is made anew;
# one that is whole is brought up to date when pyproject.toml changes; a foreign one is left alone.
VENV_IS_FOREIGN = $(and $(wildcard .venv),$(if $(wildcard .venv/made-by-make),,yes))
EMPTY_VENV = find .venv -mindepth 1 -maxdepth 1 ! -name made-by-make -exec rm -rf {} +
PYTHON_VERSION = $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo missing)
PYTHON_IS_OLD = $(shell $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || echo yes)

ifneq ($(shell cat .venv/made-by-make 2>/dev/null),$(CURDIR))
.PHONY: .venv/installed
endif

.venv/installed: pyproject.toml
	$(if $(VENV_IS_FOREIGN),$(error .venv was not made by make: use its own bin/pyro-vae and bin/pytest, or delete it))
	$(if $(PYTHON_IS_OLD),$(error pyro-vae needs Python 3.11 or newer, $(PYTHON) is $(PYTHON_VERSION): name another, as in make PYTHON=python3.12))
	@if [ -e $@ ] && [ "$$(cat .venv/made-by-make)" = "$(CURDIR)" ]; then \
		echo "pyproject.toml changed: updating .venv"; \
	else \
		mkdir -p .venv && $(EMPTY_VENV) && echo "$(CURDIR)" > .venv/made-by-make && \
		$(PYTHON) -m venv .venv && \
		echo "installing; about 5 GB with torch's CUDA libraries, a minute or two"; \
	fi
	@.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@
