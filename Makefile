# Short commands; `make help` lists them. No logic lives here.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake
CORES ?= $(shell nproc)
RUN ?=
DATASET ?=
RUNS ?=
REPO ?=
SPACE := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help setup demo dryrun dataset run preflight overview compare retry why dag queue unlock sample push prune clean \
  reset test test-slow test-slurm test-slurm-slow lint format docs lock need-run need-dataset need-runs need-repo

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Before setup, which may take minutes.
need = @test -n "$(strip $($(1)))" || \
  { echo 'error: $(1) is missing: give $(2), as in make $(firstword $(MAKECMDGOALS)) $(3)' >&2; exit 1; }

need-run:
	$(call need,RUN,the name of a recipe in config/recipes/,RUN=my_run)

need-dataset:
	$(call need,DATASET,the name of a dataset in config/config.yaml,DATASET=my_videos)

need-runs:
	$(call need,RUNS,the names of two or more runs,RUNS="first second")

need-repo:
	$(call need,REPO,the name of a repository on the model hub,RUN=my_run REPO=organization/name)

setup: $(VENV)/.ready  ## make .venv from the pinned lock

demo: setup  ## the whole pipeline on rendered scenes, on the CPU, to a report
	$(SNAKEMAKE) --cores $(CORES) results/demo_edge_posttrain/model results/demo_edge_posttrain/report.html
	@echo "report: $(CURDIR)/results/demo_edge_posttrain/report.html"

dryrun: setup  ## the whole graph of the runs in config/config.yaml, or of RUN=... or DATASET=..., nothing executed
	$(SNAKEMAKE) --dryrun --cores $(CORES) \
	  $(if $(RUN),results/$(RUN)/model results/$(RUN)/report.html) $(if $(DATASET),datasets/$(DATASET)/dataset.json)

dataset: need-dataset setup  ## clips, captions and controls of DATASET=... up to the page of its validation, nothing trained
	$(SNAKEMAKE) --cores $(CORES) datasets/$(DATASET)/dataset.json
	@cat datasets/$(DATASET)/validation/summary.txt
	@echo "clips and reasons: $(CURDIR)/datasets/$(DATASET)/validation/index.html"

run: need-run setup  ## model and report of RUN=...
	$(SNAKEMAKE) --cores $(CORES) results/$(RUN)/model results/$(RUN)/report.html
	@echo "report: $(CURDIR)/results/$(RUN)/report.html"

preflight: need-run setup  ## does RUN=... fit, and how long would it take: memory and two steps, nothing trained
	$(SNAKEMAKE) --cores $(CORES) results/$(RUN)/preflight.json
	@grep -h 'preflight: ' logs/preflight/$(RUN).log | tail -n 1

retry: need-dataset setup  ## try again what failed of DATASET=... and may pass: downloads, unanswered captions, dead processes
	$(BIN)/python src/scripts/retry.py --dataset $(DATASET) --cores $(CORES)

dag: setup  ## the graph of the configured runs, as logs/dag.mmd and, with graphviz, logs/dag.svg
	$(BIN)/python src/scripts/dag.py

queue: setup  ## the SLURM jobs of this workflow, by rule
	$(BIN)/python src/scripts/slurm_queue.py

unlock: setup  ## release a lock that a snakemake left; there is none normally, and none is released while one works
	$(BIN)/python src/scripts/unlock.py


# A dataset that failed its validation has an overview too, and fails all the same; so has one that another snakemake
# works on.
overview: need-dataset setup  ## figures, clips and controls of DATASET=..., and what was left out of it
	@$(SNAKEMAKE) --cores $(CORES) results/datasets/$(DATASET)/overview.html \
	  || { $(BIN)/python src/scripts/dataset_overview.py --dataset $(DATASET) && \
	    echo "error: snakemake failed, see above: the overview shows the dataset as it lies there, not brought up to date" >&2; \
	    exit 1; }
	@echo "overview: $(CURDIR)/results/datasets/$(DATASET)/overview.html"

compare: need-runs setup  ## RUNS="first second" over each other: what differs, curves, held-out loss, samples
	$(SNAKEMAKE) --cores $(CORES) "results/comparisons/$(subst $(SPACE),+,$(strip $(RUNS))).html"
	@echo "comparison: $(CURDIR)/results/comparisons/$(subst $(SPACE),+,$(strip $(RUNS))).html"

why: need-run setup  ## what would run again for RUN=..., and which value, file or code caused it
	$(BIN)/python src/scripts/why.py --run $(RUN)

sample: need-run setup  ## draw samples from the export of RUN=...
	$(BIN)/python src/scripts/sample.py --run $(RUN)

push: need-run need-repo setup  ## upload the export of RUN=... to the model hub as REPO=organization/name; shows what first, YES=1 sends
	$(BIN)/python src/scripts/push.py --run $(RUN) --repo "$(REPO)" $(if $(filter 1,$(YES)),--yes) $(if $(filter 1,$(PUBLIC)),--public)

prune: need-run setup  ## remove old attempts of RUN=...; asks first
	$(BIN)/python src/scripts/clean.py attempts --run $(RUN) $(if $(filter 1,$(YES)),--yes)

clean: setup  ## remove logs and caches
	$(BIN)/python src/scripts/clean.py cheap

reset: setup  ## remove all results, datasets and checkpoints; asks first
	$(BIN)/python src/scripts/clean.py everything $(if $(filter 1,$(YES)),--yes)

test: setup  ## the test suite
	$(BIN)/pytest -q -n 2 --dist loadgroup -m "not slow and not slurm"

test-slow: setup  ## the tests that take minutes
	$(BIN)/pytest -q -m "slow and not slurm"

test-slurm: setup  ## start a two-node SLURM, run the pipeline on it, stop it
	$(BIN)/pytest -q -s -m "slurm and not slow" tests/slurm

test-slurm-slow: setup  ## the tests on SLURM of what cuts training off: time limits, preemptions, signals
	$(BIN)/pytest -q -s -m "slurm and slow" tests/slurm

lint: setup  ## formatting, style, types, spelling, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/codespell README.md config docs src rules tests notebooks
	$(BIN)/python src/scripts/lock.py --check
	$(BIN)/python src/scripts/docs.py --check

format: setup  ## apply the formatters
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

docs: setup  ## regenerate config/README.md and the picture of the graph
	$(BIN)/python src/scripts/docs.py

lock: setup  ## regenerate requirements.lock and environment.yml from pyproject.toml
	$(BIN)/python src/scripts/lock.py
