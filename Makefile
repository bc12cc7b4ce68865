# Every target works alone, in any order, again and again, on a machine with Python 3.11, pip, gcc and make.
PYTHON ?= python3.11
VENV   := .venv
BENCH  := $(VENV)/bin/bench
STAMP  := $(VENV)/.installed
# In order of their folders: the long files come first, and the many short ones fill the processes at the end.
# Three processes on two cores: a test of `bench run` waits for half of its time.
PYTEST := $(VENV)/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
# uv with the indexes and wheels that pip is set up with; torch is stored once for bench and the other codebases.
UV     := $(VENV)/bin/python bench/environments/installer.py
TEXTS  := README.md CONTRIBUTING.md CHANGELOG.md docs
LOCK   := UV_CUSTOM_COMPILE_COMMAND="make locks" $(UV) pip compile --quiet --python-version 3.11 --no-annotate

# PaddlePaddle needs packages of its own age; the others share bench's.
LOCKED := $(filter-out paddledet,$(patsubst adapters/%/requirements.in,%,$(wildcard adapters/*/requirements.in)))

.PHONY: demo check test nightly lint docs bench gpu wheels peers locks format clean

demo: $(STAMP)  ## measure the quickstart recipe and write its report
	$(BENCH) run quickstart
	@echo "report: $$($(BENCH) report)"

# Unit tests wait for nothing: a third process would only cost its start.
check: $(STAMP)  ## the unit tests, in less than a minute
	$(PYTEST) --numprocesses 2 tests/unit

test: lint peers  ## lint, then every test but the nightly ones
	$(PYTEST) --ignore tests/statistical -m "not nightly"

nightly: $(STAMP)  ## coverage of intervals, error rates, fuzzing at full size, and the longest tests
	$(PYTEST) tests/statistical
	$(PYTEST) --ignore tests/statistical -m nightly

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry .
	$(VENV)/bin/codespell $(TEXTS) bench adapters contrib detectors tests benchmarks recipes
	$(VENV)/bin/rumdl check --quiet $(TEXTS) adapters contrib

docs: $(STAMP)  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

bench: $(STAMP)  ## the harness's own benchmarks: overhead, idle workers, evaluators
	$(VENV)/bin/python -m benchmarks.overhead
	$(VENV)/bin/python -m benchmarks.evaluators

gpu:  ## smoke test, equal work and reference table on one GPU, with the interpreter that is there; more runs go on
	$(if $(filter file,$(origin PYTHON)),python3,$(PYTHON)) -m benchmarks.gpu --minutes $(or $(MINUTES),8) $(addprefix --wheels ,$(or $(WHEELS),$(wildcard wheels)))

# By name: what a machine with torch, timm, pandas and matplotlib lacks, and MMDetection. None brings others along.
wheels:  ## what `make gpu` needs on a machine of Python 3.12 on x86-64 without network, in wheels/
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(foreach glibc,2_17 2_24 2_28 2_34,--platform manylinux_$(glibc)_x86_64) --platform manylinux2014_x86_64 \
	  $(foreach lock,requirements.lock adapters/mmdet/requirements.txt,--constraint $(lock)) --dest wheels \
	  addict annotated-types hotcoco mmcv-lite mmdet mmengine nvidia-ml-py platformdirs psutil py-cpuinfo \
	  pycocotools pydantic pydantic-core ruptures scipy shapely six tdewolff-minify termcolor terminaltables \
	  typing-inspection yapf

peers: $(STAMP)  ## build the environments of the other codebases
	$(BENCH) env create --all

locks: $(STAMP)  ## lock what has changed in pyproject.toml and adapters/*/requirements.in; a pin that fits stays
	$(LOCK) --universal --all-extras pyproject.toml --output-file requirements.lock >/dev/null
	for name in $(LOCKED); do $(LOCK) --universal --constraints requirements.lock \
	  adapters/$$name/requirements.in --output-file adapters/$$name/requirements.txt >/dev/null || exit; done
	$(LOCK) adapters/paddledet/requirements.in --output-file adapters/paddledet/requirements.txt >/dev/null

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(STAMP): pyproject.toml requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock uv
	$(UV) pip install --quiet --constraints requirements.lock --editable '.[native,test,lint,docs,ray,s3]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
