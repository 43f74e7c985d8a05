# make setup | demo | test. Everything runs in $(VENV), built once from requirements/.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Named after the content of requirements and of setup.cfg, which names the programs: a new clone of the same finds the
# environment ready.
READY := $(VENV)/.ready-$(shell cat requirements/*.txt setup.cfg | cksum | cut -d' ' -f1)
export PYTHONPATH := $(CURDIR)/projects
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint types tests exports clean
.DELETE_ON_ERROR:

setup: $(READY)

# The stamp is written last: an interrupted set-up goes on where it stopped, and nothing that is there is removed.
$(READY):
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements/pip.txt
	@echo "Installing torch (several GB, the longest step)"
	$(PY) -m pip install -r requirements/torch.txt -c requirements/constraints.txt
	$(PY) -m pip install -r requirements/runtime.txt -r requirements/test.txt -c requirements/constraints.txt
	$(PY) -m pip install --no-deps --no-build-isolation --use-pep517 -r requirements/detectron2.txt
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.ready*
	touch $@

demo: $(READY)
	$(PY) tools/demo.py

test: lint types tests

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY)
	$(PY) -m mypy

tests: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

# Every kind of detector as ONNX and as a program, of which the tests make one: after a change of torch or transformers.
exports: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m exports tests/deployment

clean:
	rm -rf $(VENV) output
