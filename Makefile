# Every task has a target here, and each works alone on a fresh machine: `setup` makes .venv and installs. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
PEERS ?= .venv-peers
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_FLAGS ?= -n 2
FUZZ_SEED ?= 0
MODEL ?= minilm
PIP_FLAGS := --disable-pip-version-check --no-warn-script-location
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: help setup parts demo test test-slow test-ray check-images test-gpu chaos soak lint type proto bench bench-gpu fuzz lock audit licences settings docs notebook serve clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## .venv with everything installed; the first time takes some minutes and 3 GB

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

parts: setup ## programs that tests use and pip does not bring: prometheus, chromium, shellcheck, helm, docker-compose
	@$(BIN)/python deploy/parts.py

demo: setup ## one teacher server, three students at once, on real weights and data
	@$(BIN)/student-client demo $(DEMO_FLAGS)

test: setup ## the fast tests, about 15 minutes on two cores; TEST_FLAGS='-n 2 tests/unit' for some
	$(BIN)/python -m pytest $(TEST_FLAGS)

test-slow: setup ## tests of what is learned, minutes each
	$(BIN)/python -m pytest -m slow $(TEST_FLAGS)

check-images: setup ## what the Dockerfiles do, in clean virtual environments, and all of docs/deploy.md: about eight minutes
	$(BIN)/python -m pytest -m slow tests/deploy

test-ray: setup ## fleets under a real Ray, in a network namespace (as root): about four minutes
	$(BIN)/python -m pytest -m '' --durations=0 tests/ray

test-gpu: setup ## what needs a CUDA device; one at a time, as they share it
	$(BIN)/python -m pytest -m gpu tests/gpu tests/unit

chaos: setup ## many deaths, bad networks: about ten minutes
	$(BIN)/python -m pytest -m chaos --durations=0 tests/chaos

soak: setup ## 10,000 steps and 1,000 sessions: about ten minutes
	$(BIN)/python -m pytest -m soak -s tests/soak

lint: setup ## ruff, formatting, who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: setup ## mypy, strict
	$(BIN)/mypy

proto: setup ## regenerates teaching_protocol/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. protos/teaching_protocol/v1/*.proto

# Each benchmark has the machine to itself; figures go to benchmarks/results, plots to benchmarks/plots, what they mean to LOG.md.
BENCHES := step students peers tensors fairness sessions merge waiting observe ahead pipeline lengths committee edges threads status fleet hosts scale

bench: $(BENCHES:%=bench-%) ## all benchmarks, one after the other, about an hour

bench-%: setup ## one benchmark, such as bench-step; BENCH_FLAGS='--rounds 3' for a short one
	$(BIN)/python benchmarks/bench_$*.py $(BENCH_FLAGS)

bench-step: setup
	$(BIN)/python benchmarks/bench_step.py $(BENCH_FLAGS)
	$(BIN)/python benchmarks/bench_step.py --dtype bfloat16 $(BENCH_FLAGS)

bench-students: setup
	$(BIN)/python benchmarks/bench_students.py $(BENCH_FLAGS)
	$(BIN)/python benchmarks/bench_students.py --tokens 16 $(BENCH_FLAGS)
	$(BIN)/python benchmarks/bench_students.py --dtype bfloat16 $(BENCH_FLAGS)

bench-scale: setup ## constants, the model against real runs, then its sweeps: docs/scale.md
	$(BIN)/python benchmarks/simulate_scale.py --calibrate
	$(BIN)/python benchmarks/simulate_scale.py --validate
	$(BIN)/python benchmarks/simulate_scale.py

bench-peers: setup $(PEERS)/.installed
	$(BIN)/python benchmarks/bench_peers.py --peers-python $(PEERS)/bin/python $(BENCH_FLAGS)

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "installing the peers into $(PEERS) (1.3 GB, a few minutes the first time)"
	@$(PEERS)/bin/python -m pip install $(PIP_FLAGS) --quiet --requirement benchmarks/peers/requirements.txt
	@touch $@

bench-gpu: setup ## on one GPU, a teacher of a 1B model's shapes; under 8 minutes
	$(BIN)/python benchmarks/bench_gpu.py

fuzz: setup ## 1,300,000 mutated inputs: the unpacker and the import of states
	$(BIN)/python -m tests.fuzz unpack --inputs 1000000 --seed $(FUZZ_SEED)
	$(BIN)/python -m tests.fuzz state --inputs 300000 --seed $(FUZZ_SEED)

lock: setup ## deploy/docker/requirements*.lock: what the images install, pinned with hashes
	$(BIN)/python deploy/lock.py
	$(BIN)/python deploy/lock.py --cuda

audit: setup ## known faults of what the images install; needs pip-audit and its database
	$(BIN)/python deploy/audit.py

licences: setup ## docs/licences.md: under which licences everything is that gets installed
	$(BIN)/python deploy/licences.py

settings: setup ## the tables of fields in docs/configuration.md and docs/fleet.md
	$(BIN)/python deploy/settings.py

docs: setup ## the documentation as a site in site/, warnings are errors; read it by `python -m http.server --directory site`
	$(BIN)/python -m docs.pictures
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebook: setup ## runs examples/talking_models.ipynb and keeps what came out: about a minute
	$(BIN)/python deploy/notebook.py

serve: setup ## a teacher server; MODEL=name or folder, SERVE_FLAGS=further flags
	$(BIN)/teacher-server serve --model $(MODEL) $(SERVE_FLAGS)

clean: ## removes everything that targets made: .venv, runs, site, caches
	rm -rf $(VENV) $(PEERS) .parts runs site .mypy_cache .ruff_cache .pytest_cache .hypothesis
