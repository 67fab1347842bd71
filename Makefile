# make train   a language model learns arithmetic by NGRPO on this machine (about ten minutes after the install)
# make test    the tests        make check   tests, lint, types, contracts, documentation: what CI runs
# make fuzz CASES=10000   that many new odd inputs, shared out over everything that is read
PYTHON ?= python3
TORCH ?= torch==2.13.*
BIN := .venv/bin

TRAIN := train ngrpo --policy smollm2-135m --lr 2e-5 --prompts 8 --minibatches 2 --steps 30 --eval-every 15 --checkpoint-every 15 \
  --task "reasoning-gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=2,extract=last-number,max_tokens=12,instruction=Reply with the answer only."

.PHONY: setup train test test-all test-gpu bench-gpu mutate fuzz lint types contracts docs readme bench bench-compare wheel measure check clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "anypolicy needs Python 3.11 or newer: set PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { echo "Python has no venv here: install python3-venv"; exit 2; }
	@echo "making .venv (torch and transformers: a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@$(BIN)/python -m pip install --quiet -e ".[tasks,control,exact,diffusion,tensorboard,lora]"
	@touch $@

.venv/.ready-dev: .venv/.ready
	@$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

train: setup
	@n=0; while [ -e runs/first-$$n ]; do n=$$((n + 1)); done; $(BIN)/anypolicy $(TRAIN) --out runs/first-$$n

test: .venv/.ready-dev
	@$(BIN)/python -m pytest -n auto

# the tests, and every stage in every method
test-all: .venv/.ready-dev
	@EVERY_PAIR=1 $(BIN)/python -m pytest -n auto

# on a machine with a GPU: what a pretended one cannot say, and the benchmarks beside TRL and Stable-Baselines3
test-gpu: .venv/.ready-dev
	@$(BIN)/python -m pytest -n 0 tests/gpu

bench-gpu: .venv/.ready-dev
	@$(BIN)/python benchmarks/gpu_grpo.py

# random changes of one place of the code: which do the tests notice?
SEED ?= 0
N ?= 150
mutate: .venv/.ready-dev
	@$(BIN)/python scripts/mutate.py --seed $(SEED) --n $(N)

# new cases of everything that is read: CASES of them, shared out over all kinds
CASES ?= 1000
fuzz: .venv/.ready-dev
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -n auto tests/fuzz

readme: .venv/.ready-dev
	@$(BIN)/python docs/readme.py

lint: .venv/.ready-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/.ready-dev
	@$(BIN)/pyright

contracts: .venv/.ready-dev
	@$(BIN)/lint-imports

docs: .venv/.ready-dev
	@$(BIN)/mkdocs build --strict --quiet

bench: .venv/.ready-dev
	@$(BIN)/python benchmarks/grpo_step.py

# this checkout beside an earlier revision of itself
REV ?= HEAD~1
bench-compare: .venv/.ready-dev
	@$(BIN)/python benchmarks/compare_revisions.py $(REV)

# the package as a file for pip, claims and their evidence in it
wheel: .venv/.ready-dev
	@$(BIN)/python -m hatchling build -t wheel -d dist

# the house in numbers
measure: .venv/.ready-dev
	@$(BIN)/python scripts/measure.py

check: test lint types contracts docs

clean:
	rm -rf .venv site
