# make demo    the whole way on a synthetic data set: draw, train, evaluate, export, search (about 10 minutes on 2 cores)
# make test    the linter and all tests
# Both make .venv and install requirements.txt into it first. PYTHON=python3.12 make test chooses another interpreter.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/installed
	$(PY) demo.py

test: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m pytest

clean:
	rm -rf $(VENV) runs/demo
