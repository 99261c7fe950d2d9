# make lab    copies the notebooks to lab-notebooks and opens JupyterLab there  (LAB_PORT=8899, LAB_NO_BROWSER=1)
# make test   proves that everything works
# make check  its fast part, for daily work; M=gal only that room (a method, or a folder of core such as core/graph)
# make fix    formats the code and mends what the linter can
# make mutants  breaks each line of the equations and names what no test notices  (M=gal, FILE=recipe)
# make tour   runs the tour without a browser and writes tour.html
# make kernels-arm  compiles SparseByteNN's engine for 64-bit ARM: a static library and its headers in build/arm
# make kernels-wasm  compiles it for browsers, into the package: needs clang-19 and lld-19
# make docs   builds the site from the stored notebooks, cards and data: docs/_build/html/index.html
# make release  builds dist/ and asks twine, pyroma, repo-review, zizmor, abi3audit and auditwheel about it
# make arm-wheel  cross-compiles the wheel for 64-bit ARM under Linux into dist/
# make sbom   writes dist/sbom.json, the bill of materials (CycloneDX): packages, data, and their licences
# make clean  removes what the others made
.PHONY: lab test check fix mutants tour setup docs release arm-wheel sbom clean kernels-arm kernels-wasm

export OMP_NUM_THREADS ?= 1
export JUPYTER_PREFER_ENV_PATH = 1
unexport PYTHONDONTWRITEBYTECODE  # a hundred processes would each compile torch anew
PY = .venv/bin/python

lab: setup
	@$(PY) -m lab start

# In parts: the browser's tests take times and want the machine for themselves, the others share it. The notebooks run
# twice, for their outputs must be the same on the widest instruction set here and without any.
test: setup .venv/torchvision .venv/timm
	$(PY) -m pytest -n 2 --dist loadscope tests --ignore tests/browser
	$(PY) -m pytest tests/browser
	$(PY) -m pytest -n 2 --dist loadscope notebooks
	ATEN_CPU_CAPABILITY=default $(PY) -m pytest -n 2 --dist loadscope notebooks

# The tests take their architectures. Beside the environment, not in it: torchvision's compiled part does not load beside
# another build of torch, and transformers imports what it sees.
.venv/torchvision:
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $@ torchvision==0.28.0

.venv/timm:
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $@ timm==1.0.31

check: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadscope -m "not slow" tests/$(M)

fix: setup
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

mutants: setup
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt mutmut==3.8.1
	$(PY) tests/mutants.py "$(M)" $(FILE)

tour: setup
	$(PY) -m nbconvert --to html --execute --ExecutePreprocessor.store_widget_state=False \
	  --output-dir . --output tour notebooks/00_tour.ipynb

docs: setup
	@rm -rf docs/_build
	$(PY) -m sphinx -q -W --keep-going -j 2 -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# For a phone: make kernels-arm CC=$NDK/.../aarch64-linux-android24-clang AR=$NDK/.../llvm-ar
kernels-arm: CC = aarch64-linux-gnu-gcc
kernels-arm: AR = aarch64-linux-gnu-ar
kernels-arm: CFLAGS = -O3 -fPIC
kernels-arm: ARM = build/arm
kernels-arm: ARM_SOURCES = $(filter-out %/avx2.c %/avx512.c %/simd128.c %/wasm.c,$(wildcard ckernels/*.c))
kernels-arm:
	@mkdir -p $(ARM) && rm -f $(ARM)/*.o $(ARM)/libsbnn.a
	@for source in $(ARM_SOURCES); do \
	  $(CC) $(CFLAGS) -c $$source -o $(ARM)/$$(basename $$source .c).o || exit 1; \
	done
	@$(AR) rcs $(ARM)/libsbnn.a $(ARM)/*.o && rm -f $(ARM)/*.o
	@cp ckernels/sbnn.h ckernels/kernels.h $(ARM)
	@echo "$(ARM)/libsbnn.a ($(notdir $(ARM_SOURCES))) and $(ARM)/sbnn.h: ckernels/examples/run.c shows their use"

kernels-wasm:
	@python3 ckernels/wasm.py

release: setup
	@.ci/release

arm-wheel: setup
	@.ci/release arm

sbom: setup
	@.ci/release sbom

setup:
	@.ci/setup

clean:
	rm -rf .venv mutants build dist artefacts runs docs/made docs/_build tour.html *.egg-info lab/core/_kernels.*
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
