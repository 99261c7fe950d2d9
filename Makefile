# make lab    opens JupyterLab on the tour            (LAB_PORT=8899, LAB_NO_BROWSER=1)
# make test   proves that everything works
# make check  its fast part, for daily work
# make tour   runs the tour without a browser and writes tour.html
# make clean  removes what the others made
.PHONY: lab test check tour setup clean

export OMP_NUM_THREADS ?= 1
export JUPYTER_PREFER_ENV_PATH = 1
PY = .venv/bin/python

lab: setup
	@$(PY) -m lab start notebooks

test: setup
	$(PY) -m pytest

check: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadscope -m "not slow" tests

tour: setup
	$(PY) -m nbconvert --to html --execute --ExecutePreprocessor.store_widget_state=False \
	  --output-dir . --output tour notebooks/00_tour.ipynb

setup:
	@.ci/setup

clean:
	rm -rf .venv build dist artefacts runs tour.html *.egg-info lab/core/_kernels.*
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
