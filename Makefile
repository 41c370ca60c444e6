VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Of tests, one more than there are cores: some wait for processes, servers and time limits.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# Where this is set, each process would compile all that it imports, a dozen seconds for torch and transformers.
unexport PYTHONDONTWRITEBYTECODE

BENCH_VENV ?= .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

.PHONY: demo test test-long test-lowest test-newest soak fuzz lint imports bench bench-serve gpu clean

# Fine-tune a teacher, distil it, compare with the undistilled student: offline once the packages are here.
demo: $(READY)
	$(BIN)/python recipes/quickstart.py

# Lint, types and the whole suite, a file at a time, in the order of tests/conftest.py: files of few tests are no short ones.
test: $(READY)
	$(MAKE) -j2 lint imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# ... with the tests of half a minute and more, which the suite leaves out: recipes on several processes, lost machines, ...
test-long: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --long

# The quick part of the suite: all that reads other libraries' inner workings, without processes, servers and recipes.
QUICK := tests/data tests/gpu tests/models tests/objectives tests/students tests/teachers tests/training

# ... with the oldest and with the newest versions that pyproject.toml allows, in environments of their own.
test-lowest: VERSIONS := -c tests/constraints-lowest.txt
test-newest: VERSIONS := --upgrade
test-lowest test-newest: test-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q $(VERSIONS) torch
	.venv-$*/bin/python -m pip install -q $(VERSIONS) -e ".[demo,dev,export,peft,report,teachers,tune]"
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n $(WORKERS) --dist loadfile $(QUICK)

# Kill jobs at 50 random moments, resume and compare them; writes tests/faults/README.md.
soak: $(READY)
	$(BIN)/python tests/faults/soak.py

# Damage the files that nlpkd reads back, run what reads them; FUZZ="--seconds 60 --seed 1" for another run.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/fuzz.py $(FUZZ)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compile what the tests import, once and not in each worker; what fails here, the tests show.
imports: $(READY)
	-OMP_NUM_THREADS=1 $(BIN)/python -m pytest --collect-only -qq > /dev/null 2>&1

# Python compiles what is imported, a quarter of all that pip would compile.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[demo,dev,export,peft,report,teachers,tracking,try,tune]"
	touch $@

# Training throughput beside TextBrewer and others, in an environment of its own: some ten minutes on 2 quiet cores.
bench: $(BENCH_READY)
	$(BENCH_VENV)/bin/python tests/benchmarks/training.py --output $(BENCH_VENV)/training.json $(BENCH)

# Results and speed on a GPU, under eight minutes on one card; with the torch that is installed, which knows the card.
gpu:
	$(PYTHON) tests/gpu/check.py $(GPU)

# Latency and size of a teacher in PyTorch and its student in PyTorch, ONNX and int8.
bench-serve: $(BENCH_READY)
	$(BENCH_VENV)/bin/python tests/benchmarks/serving.py $(BENCH)

$(BENCH_READY): pyproject.toml constraints.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BENCH_VENV)/bin/python -m pip install -q -c constraints.txt -e ".[demo,export,tracking]"
	$(BENCH_VENV)/bin/python -m pip install -q --no-deps textbrewer==0.2.1.post1
	touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) .venv-lowest .venv-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
