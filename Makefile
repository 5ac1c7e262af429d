# From a clean clone, `make lenet` and `make test` set up all they need; a second call sets up nothing.
#
#   TORCH=2.11.0                   another torch in .venv
#   NEWEST_TORCH=2.14.1            of `make newest`: the torch it builds with
#   CUDA_TORCH=2.14.1              of `make cuda`: the torch it builds with
#   PYTHON=/path/to/python VENV=   that interpreter as it is, with the torch it has: nothing is installed
#   BASE=revision                  of `make compare`: what the working tree is compared with
#   ARGS="..."                     passed on to what the target runs
#   SECONDS=600                    of `make fuzz`
#   OUT=folder CALLS="..."         of `make gpu`: where it writes to, and a part of what it does
#   V=1                            of whatever builds: the compiler's command lines
#
# setup.py lists the variables that steer the build (FORCE_CUDA, FUSED_BN_CPU_ONLY, ...).

TORCH ?= 2.13.0
NEWEST_TORCH ?= 2.14.1
CUDA_TORCH ?= 2.11.0
PYTHON ?= python3
VENV ?= .venv
EPOCHS ?=
BASE ?=
ARGS ?=
OUT ?= results/gpu
CALLS ?=
SECONDS ?= 600

# The interpreter that everything runs in, what must be there before it can, and how to demand a package
# of it: its own .venv has all of them.
ifeq ($(VENV),)
run := $(PYTHON)
ready := given-interpreter
test-ready := given-interpreter
lint-ready := given-interpreter
cuda-ready := given-interpreter
tools-ready := given-interpreter
docs-ready := given-interpreter
wheel-ready := given-interpreter
require = $(run) .ci/require.py
else
run := $(VENV)/bin/python
ready := $(VENV)/ready-torch-$(TORCH)
test-ready := $(VENV)/ready-test
lint-ready := $(VENV)/ready-lint
cuda-ready := $(VENV)/ready-cuda
tools-ready := $(VENV)/ready-tools
docs-ready := $(VENV)/ready-docs
wheel-ready := $(VENV)/ready-wheel
require = @:
endif

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.PHONY: lenet
lenet: build/extension ## trains LeNet-5 on MNIST with and without batch norm (EPOCHS=1 for a quick look)
	@$(require) numpy matplotlib rich tqdm
	$(run) -m benchmarks.lenet $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

.PHONY: test
test: build/extension $(test-ready) $(tools-ready) $(docs-ready) $(if $(shell command -v nvcc),$(cuda-ready)) ## the test suite
	@$(require) pytest hypothesis jinja2 keras numpy matplotlib rich sklearn tqdm transformers
	$(run) -m pytest $(ARGS)

.PHONY: test-kernels
test-kernels: build/extension $(test-ready) ## the CUDA kernels' source on the CPU: all of it, where `make test` runs a part
	@$(require) pytest hypothesis numpy
	$(run) -m pytest tests/simt -m "kernels_full or not kernels_full" $(ARGS)

.PHONY: gates
gates: $(test-ready) $(cuda-ready) ## the CUDA kernels compiled for every architecture: no spills, wide loads and stores
	@$(require) pytest hypothesis numpy
	$(run) -m tests.gates.toolchain
	$(run) -m pytest tests/gates -m "kernels_full or not kernels_full" $(ARGS)

.PHONY: bench
bench: build/extension ## speed compared with eager PyTorch and torch.compile
	@$(require) numpy matplotlib rich tqdm
	$(run) -m benchmarks.speed $(ARGS)

.PHONY: bench-quick
bench-quick: build/extension $(test-ready) ## the small cells of the grid, in two minutes
	@$(require) pytest pytest_benchmark numpy matplotlib rich tqdm
	$(run) -m pytest benchmarks -m quick $(ARGS)

.PHONY: grid
grid: build/extension $(test-ready) ## the whole grid, accuracy and instruction counts (ARGS=--record adds them to the history)
	@$(require) pytest pytest_benchmark numpy matplotlib rich tqdm
	$(run) -m pytest benchmarks $(ARGS)

.PHONY: report
report: $(test-ready) ## what was recorded, as one page and pictures: results/report/index.html
	@$(require) jinja2 numpy matplotlib
	$(run) -m benchmarks.report $(ARGS)

.PHONY: experiments
experiments: build/extension $(test-ready) ## the published experiments (ARGS="circles --api keras"; without it all, 15 minutes; --quick)
	@$(require) numpy matplotlib rich sklearn tqdm
	$(run) -m benchmarks.experiments $(ARGS)

.PHONY: keras
keras: build/extension $(test-ready) ## model.fit of Keras 3 with its layer and with ours
	@$(require) keras numpy rich tqdm
	$(run) -m benchmarks.keras $(ARGS)

.PHONY: compare
compare: build/extension ## this working tree's speed compared with another revision's (BASE=main; default: the one before the last change)
	@$(require) setuptools ninja numpy rich tqdm
	$(run) -m benchmarks.compare $(or $(BASE),--against-main) $(ARGS)

.PHONY: gpu
gpu: $(test-ready) ## builds, then measures and tests on this machine's GPU in 6 minutes (OUT=folder, CALLS="first")
	@$(require) setuptools ninja pytest hypothesis numpy matplotlib rich tqdm
	$(run) -m benchmarks.gpu $(CALLS) --build --out "$(OUT)" $(ARGS)

.PHONY: build
build: build/extension ## the extension, in place

.PHONY: wheel
wheel: build/extension $(wheel-ready) ## a wheel for this torch and every manylinux like this one or newer: dist/*.whl
	@$(require) auditwheel
	.ci/wheel $(run) dist

.PHONY: sanitize
sanitize: $(test-ready) ## the operator tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(require) pytest hypothesis numpy
	.ci/sanitize $(run)

.PHONY: fuzz
fuzz: $(test-ready) ## random calls and values under the sanitizers, for SECONDS=600
	@$(require) hypothesis numpy pytest
	.ci/sanitize $(run) $(SECONDS)

.PHONY: cuda
cuda: $(ready) ## a build with CUDA in an environment of its own, without need of a GPU (CUDA_TORCH=2.14.1)
	.ci/cuda $(run) $(CUDA_TORCH)

.PHONY: cuda-emulated
cuda-emulated: $(ready) ## all tests on CUDA, on an emulated device (ARGS="-k graphs"; ARGS="-m cuda": more of them)
	.ci/cuda-emulated $(run) $(CUDA_TORCH) $(ARGS)

.PHONY: newest
newest: $(ready) ## a build without CUDA for the newest torch in an environment of its own, with Python 3.12
	.ci/newest $(run) $(NEWEST_TORCH)

cxx-files := find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h'
clang-format := from clang_format import clang_format as main; main()

.PHONY: lint
lint: $(test-ready) $(lint-ready) ## ruff, mypy and clang-format
	@$(require) ruff mypy clang_format
	$(run) -m ruff check .
	$(run) -m ruff format --check .
	$(run) -m mypy
	$(cxx-files) | xargs $(run) -c '$(clang-format)' --dry-run -Werror

.PHONY: format
format: $(ready) $(lint-ready) ## rewrites the sources as `make lint` wants them
	$(run) -m ruff check --fix .
	$(run) -m ruff format .
	$(cxx-files) | xargs $(run) -c '$(clang-format)' -i

.PHONY: docs
docs: $(test-ready) $(docs-ready) ## the pages as a site: build/site/index.html
	@$(run) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("the site needs Python 3.11 or newer")'
	@$(require) mkdocs material mkdocstrings_handlers keras
	KERAS_BACKEND=torch NO_MKDOCS_2_WARNING=1 $(run) -m mkdocs build --strict --quiet

.PHONY: doctor
doctor: build/extension ## what is built, what works here, and how to fix what does not
	$(run) -m fused_bn doctor

.PHONY: clean
clean: ## removes what was built; .venv stays
	rm -rf build dist fused_bn.egg-info fused_bn/_C*.so

$(VENV)/ready-torch-$(TORCH): .ci/requirements.txt
	@$(PYTHON) .ci/require.py venv
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/ready-torch-*
	$(run) -m pip install --quiet --disable-pip-version-check torch==$(TORCH) -r .ci/requirements.txt
	touch $@

$(VENV)/ready-test: .ci/requirements-test.txt | $(ready)
	$(run) -m pip install --quiet --disable-pip-version-check torch==$(TORCH) -r .ci/requirements-test.txt
	touch $@

$(VENV)/ready-lint: .ci/requirements-lint.txt | $(ready)
	$(run) -m pip install --quiet --disable-pip-version-check -r .ci/requirements-lint.txt
	touch $@

$(VENV)/ready-tools: .ci/requirements-tools.txt | $(ready)
	$(run) -m pip install --quiet --disable-pip-version-check torch==$(TORCH) -r .ci/requirements-tools.txt
	touch $@

$(VENV)/ready-docs: .ci/requirements-docs.txt | $(ready)
	$(run) -m pip install --quiet --disable-pip-version-check -r .ci/requirements-docs.txt
	touch $@

$(VENV)/ready-cuda: .ci/requirements-cuda.txt | $(ready)
	$(run) -m pip install --quiet --disable-pip-version-check -r .ci/requirements-cuda.txt
	touch $@

$(VENV)/ready-wheel: .ci/requirements-wheel.txt | $(ready)
	$(run) -m pip install --quiet --disable-pip-version-check -r .ci/requirements-wheel.txt
	touch $@

.PHONY: given-interpreter
given-interpreter:
	@$(require) torch setuptools

# Built anew when the sources or the settings below change, or where the file itself is gone.
build/extension: setup.py $(shell find csrc) build/settings $(if $(wildcard fused_bn/_C*.so),,FORCE)
	$(run) setup.py build_ext --inplace
	touch $@

# Touched only where its text changes: the interpreter, its torch, and the variables that setup.py reads.
build/settings: FORCE | $(ready)
	@mkdir -p build
	@{ echo "$(run)"; \
	   $(run) -c 'import sys, importlib.metadata as m; print(sys.version, m.version("torch"))'; \
	   echo "$$FORCE_CUDA,$$FUSED_BN_CPU_ONLY,$$FUSED_BN_NO_EXTENSION,$$FUSED_BN_SANITIZE"; \
	   echo "$$TORCH_CUDA_ARCH_LIST,$$CUDA_HOME,$$CUDA_PATH,$$CXX"; \
	   command -v nvcc || true; } > $@.new
	@cmp -s $@.new $@ || cp $@.new $@

.PHONY: FORCE
FORCE:
