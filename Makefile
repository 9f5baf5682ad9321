# make demo   set up and run the main job, offline
# make test   set up and run the tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RESULTS ?= results/bench
FNABENCH_ASSETS ?= assets
export FNABENCH_ASSETS
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test check format wheel bench bench-fna bench-gpu bench-loader train-bundled test-slurm verify
.PHONY: leaderboard clean report-tokens report-tokens-of

help:  ## the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*##(.*)/\1\t\2/' | expand -t 16

setup: $(READY)  ## .venv with the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## the main job on the bundled model and data, offline
	$(BIN)/python -m fnabench task=retrieval model=clip attention=fna

test: setup  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: setup  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## write the format and the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup  ## build the wheel and run a job from it in a fresh venv in an empty folder
	BIN=$(abspath $(BIN)) tests/wheel.sh

bench: setup  ## the harness's own speed, side by side; writes results/bench/
	$(BIN)/python -m fnabench.bench.harness

bench-fna: setup  ## FNA as published and refined: speed, fidelity, sinks, peers, bounds (2 h); writes results/bench/
	$(BIN)/python -m fnabench.bench.fna
	$(BIN)/python -m fnabench.bench.fidelity
	$(BIN)/python -m fnabench.bench.peers
	$(BIN)/python -m fnabench.bench.alternatives
	$(BIN)/python -m fnabench.bench.bounds

bench-gpu:  ## test, profile and time the kernels on an NVIDIA GPU, offline; writes gpu.{json,md} to RESULTS=results/bench
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m fnabench.bench.gpu $(RESULTS)

train-bundled: setup  ## train the bundled models again (hours on a CPU); goes on where it was stopped
	$(BIN)/python -m fnabench.train.clip
	$(BIN)/python -m fnabench.train.llava

test-slurm: setup  ## a sweep through a real one-node Slurm (installs Debian's packages; needs root)
	PATH=$(abspath $(BIN)):$$PATH tests/slurm/run.sh

bench-loader: setup  ## images/s of the loader beside the encoder's, for more and more worker processes
	$(BIN)/python -m fnabench.bench.loader

report-tokens: setup  ## massive and artifact tokens of ViT-Ti and the bundled CLIP, and masking them; writes results/tokens/
	$(MAKE) report-tokens-of MODEL=vit_tiny DATA=imagenet_sample IMAGES=0  # those photographs are not ours to show
	$(MAKE) report-tokens-of MODEL=clip DATA=scenes IMAGES=6

report-tokens-of: setup
	$(BIN)/python -m fnabench task=tokens model=$(MODEL) data=$(DATA) data.limit=500 attention=exact \
	  probe=none tracker=none
	$(BIN)/python -m fnabench +experiment=masking_sweep model=$(MODEL) data=$(DATA) tracker=none
	$(BIN)/python -m fnabench -m task=classification model=$(MODEL) data=$(DATA) data.limit=500 \
	  attention=fna,exact_registers,fna_registers probe=none tracker=none
	$(BIN)/python -m fnabench figures tokens results/tokens/$(DATA)/$(MODEL) \
	  --masking results/classification/$(DATA)/$(MODEL) --images $(IMAGES) --formats png --out results/tokens/$(DATA)/$(MODEL)

verify: setup  ## the bundled CLIP's exact attention against its card, on a few scenes
	$(BIN)/python -m fnabench verify --quick model=clip data=scenes

leaderboard: setup  ## results/LEADERBOARD.md from the records
	$(BIN)/python -m fnabench leaderboard

clean:  ## remove what setup made
	rm -rf $(VENV)
