# The only door. Each target works alone on a fresh machine: `setup` makes .venv and installs.
PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_FLAGS ?= -n 2
PIP_FLAGS := --disable-pip-version-check --no-warn-script-location
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: setup demo test test-slow lint type proto bench serve clean

setup: $(STAMP)

# A torch that is there already (a GPU image, with VENV_FLAGS=--system-site-packages) is pinned as it is.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@found=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null); \
	if [ -n "$$found" ]; then sed "s/^torch==.*/torch==$$found/" constraints.txt > $(VENV)/constraints.txt; \
	else cp constraints.txt $(VENV)/constraints.txt; fi
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint $(VENV)/constraints.txt --editable '.[dev]' \
	| grep --line-buffered -E '^(Collecting|Installing|Successfully|ERROR)' | cut -c1-100
	@touch $(STAMP)

demo: setup ## one teacher server, three students at once, on real weights and data
	@$(BIN)/student-client demo $(DEMO_FLAGS)

test: setup
	$(BIN)/python -m pytest $(TEST_FLAGS)

test-slow: setup ## learning tests, minutes each
	$(BIN)/python -m pytest -m slow $(TEST_FLAGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: setup
	$(BIN)/mypy

proto: setup ## regenerates teaching_protocol/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. protos/teaching_protocol/v1/*.proto

bench: setup
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_tensors.py
	$(BIN)/python benchmarks/bench_observe.py
	$(BIN)/python benchmarks/bench_ahead.py
	$(BIN)/python benchmarks/bench_pipeline.py
	$(BIN)/python benchmarks/bench_lengths.py
	$(BIN)/python benchmarks/bench_committee.py
	$(BIN)/python benchmarks/bench_merge.py
	$(BIN)/python benchmarks/bench_edges.py
	$(BIN)/python benchmarks/bench_waiting.py
	$(BIN)/python benchmarks/bench_fairness.py
	$(BIN)/python benchmarks/bench_sessions.py

serve: setup ## MODEL=name or folder
	$(BIN)/teacher-server serve --model $(MODEL) $(SERVE_FLAGS)

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
