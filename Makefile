# make demo    the whole way on a synthetic data set: draw, train, evaluate, export, search (about 10 minutes on 2 cores)
# make test    the linter and all tests
# Both make .venv and install requirements.txt into it first. PYTHON=python3.12 make test chooses another interpreter.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Threads of OpenMP that wait for one another do not spin long: on a busy machine that stops them all
export GOMP_SPINCOUNT ?= 3000

.PHONY: demo test clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": PYTHON=python3.12 make ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

DEMO := runs/demo
CROPS := data/synthetic/Market-1501-v15.09.15

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(PY) -m tools.synthetic
	$(PY) train.py --arch hacnn --dataset synthetic --epochs 4 --batch-size 32 --lr 0.002 --out $(DEMO)
	$(PY) export.py --ckpt $(DEMO)/best.pth
	$(PY) search.py --model $(DEMO)/best.onnx --query $(CROPS)/query --gallery $(CROPS)/bounding_box_test \
		--labels market1501 --out $(DEMO)
	@echo
	@grep rank-1 $(DEMO)/log.txt
	@echo "weights and exports: $(DEMO)/best.pth best.onnx best.torchscript.pt"
	@echo "ranked pictures:     $(DEMO)/ranked.jpg, as a table ranked.csv; curves.png, log.txt"

test: $(VENV)/installed
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 4 --dist worksteal

clean:
	rm -rf $(VENV) $(DEMO)
