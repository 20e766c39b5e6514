# Every target sets up what it needs; the first run installs pinned dependencies into .venv and compiles the kernels,
# later runs reuse both.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo

.PHONY: demo test test-slow bench calibrate accuracy lint format clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/optsched warm-up
	@touch $@

demo: $(STAMP)
	@rm -rf $(DEMO)
	@mkdir -p $(DEMO)/models/gpus
	@echo "1/4  calibrate: time real torch steps on this machine with 1, 2 and 3 replicas busy"
	@OPTSCHED_MODELS=$(DEMO)/models $(BIN)/optsched calibrate --tier local-cpu --llm demo-qwen3 --out $(DEMO)/models/gpus/local-cpu.toml
	@echo "2/4  plan: decide, predict, prove a bound"
	@OPTSCHED_MODELS=$(DEMO)/models $(BIN)/optsched plan quickstart --out $(DEMO)/plan.json
	@echo "3/4  simulate: execute the plan on a virtual clock"
	@$(BIN)/optsched simulate $(DEMO)/plan.json
	@echo "4/4  run: execute the plan on real torch workers"
	@$(BIN)/optsched run $(DEMO)/plan.json --log $(DEMO)/log.parquet
	@echo "Written: $(DEMO)/plan.json and $(DEMO)/log.parquet"

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	HYPOTHESIS_PROFILE=slow $(BIN)/python -m pytest -q

bench: $(STAMP)
	$(BIN)/python -m pytest -q tests/benchmarks --override-ini='addopts=' --override-ini='python_files=bench_*.py' --benchmark-columns=min,median,max,rounds --benchmark-sort=name

# Both need published measurements: OPTSCHED_DATA (a folder, see tests/conftest.py) and OPTSCHED_AICONFIGURATOR (the folder
# systems/data of the unpacked wheel aiconfigurator-core 0.12.0).
calibrate: $(STAMP)
	@test -n "$$OPTSCHED_DATA" -a -n "$$OPTSCHED_AICONFIGURATOR" || { echo "set OPTSCHED_DATA and OPTSCHED_AICONFIGURATOR"; exit 2; }
	for script in tests/benchmarks/calibrate_*.py; do $(BIN)/python $$script || exit 1; done

accuracy: $(STAMP)
	@test -n "$$OPTSCHED_DATA" -a -n "$$OPTSCHED_AICONFIGURATOR" || { echo "set OPTSCHED_DATA and OPTSCHED_AICONFIGURATOR"; exit 2; }
	for script in tests/benchmarks/accuracy*.py; do $(BIN)/python $$script || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
