# Every target works alone, in any order, again and again, on a machine with Python 3.11, pip, gcc and make.
PYTHON ?= python3.11
VENV   := .venv
BENCH  := $(VENV)/bin/bench
STAMP  := $(VENV)/.installed

.PHONY: demo test lint bench peers browser format clean

demo: $(STAMP)  ## measure the quickstart recipe and write its report
	$(BENCH) run recipes/quickstart.yaml
	@echo "report: $$($(BENCH) report)"

test: lint peers browser  ## lint, then every test
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

peers: $(STAMP)  ## build the environments of the other codebases
	$(BENCH) env create --all

browser:  ## Chromium for the tests of the static page, where apt-get can install it; without it they are skipped and say so
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium >/dev/null) \
	  || echo "no chromium: the tests of the page in a browser will be skipped"

bench: $(STAMP)  ## the harness's own benchmarks: overhead, idle workers, evaluators
	$(VENV)/bin/python -m benchmarks.overhead
	$(VENV)/bin/python -m benchmarks.evaluators

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(STAMP): pyproject.toml requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[native,test,lint]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
