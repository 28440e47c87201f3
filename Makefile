# make repro and make test are the two commands a newcomer needs; each sets up .venv first if it is not there.
SHELL := /bin/bash
# The first Python from 3.11 to 3.14 that runs and can make environments; PYTHON=/path/to/python chooses another.
SUITABLE = import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for one in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$one -c "$(SUITABLE)" >/dev/null 2>&1 && { echo $$one; break; }; done)
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONPATH := src
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# Texts of the user's: make would take a $ in them for a variable of its own.
override PROMPT := $(value PROMPT)
override PREFERENCE := $(value PREFERENCE)
export PROMPT PREFERENCE
yes = $(filter-out 0 no No NO false False FALSE off Off OFF,$(1))# a switch: COLLECT=0 is no
.DEFAULT_GOAL := help
.PHONY: help setup repro test test-fast test-unit test-processes test-processes-lint-types test-pretrain soak lint types ui publish compare profile ledger retry-failed forget improve feedback gallery calibrate preflight gpu-check doctor estimate bench table1 table2 sealed rehearse pretrain model-card clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.txt
	@$(or $(PYTHON),false) -c "$(SUITABLE)" 2>/dev/null || { \
		echo "Python 3.11 to 3.14 with its venv module is needed: set PYTHON=/path/to/python3.12"; exit 1; }
	@echo "installing requirements.txt into $(VENV) takes some minutes"
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

setup: $(READY) ## make the virtual environment from requirements.txt (3 to 6 minutes)

repro: $(READY) ## run what is out of date of the experiment, then publish it to MLflow; ends with metrics/report.html
	@python -m t2i_feedback.tools.unlock
	@python -m t2i_feedback.tools.doctor --quick
	dvc repro
	python -m t2i_feedback.tools.publish
	@python -m t2i_feedback.tools.compare
	@echo "open metrics/report.html"

test: $(READY) ## all tests, lint and types
	$(MAKE) --no-print-directory --jobs 2 --keep-going test-processes-lint-types test-unit

test-processes-lint-types: # the shorter half of the tests, and what else fills its core
	$(MAKE) --no-print-directory --keep-going test-processes lint types

test-fast: $(READY) ## what needs no DVC, MLflow, server or second process: two minutes on one core
	OMP_NUM_THREADS=1 pytest tests/unit -m "not slow"

test-unit: $(READY) ## one half of the tests, on one core: packages one by one
	OMP_NUM_THREADS=1 pytest tests/unit

test-processes: $(READY) ## the other half, on one core: DVC runs in clones, pre-training, servers, several processes
	OMP_NUM_THREADS=1 pytest tests/pipeline tests/integration

test-pretrain: $(READY) ## of that, pre-training alone: its whole chain with tiny sizes
	OMP_NUM_THREADS=1 pytest tests/pipeline/test_pretrain.py tests/pipeline/test_pretrain_mllm.py

soak: $(READY) ## kill the experiment in every stage and damage what it reads; a quarter of an hour: MINUTES=15 SEED=1
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests/support:. python tests/integration/soak.py --minutes $(or $(MINUTES),15) $(if $(SEED),--seed $(SEED))

lint: $(READY) ## ruff
	ruff check . && ruff format --check .

types: $(READY) ## mypy
	mypy

ui: $(READY) ## the MLflow UI on this repository's runs, http://127.0.0.1:5000
	@python -m t2i_feedback.tools.ui

publish: $(READY) ## log the present metrics, images and report to MLflow again (idempotent)
	python -m t2i_feedback.tools.publish

compare: $(READY) ## what differs from the run before, also as a page: make compare (the last commit) or REV=my-experiment
	@python -m t2i_feedback.tools.compare $(REV)

profile: $(READY) ## print a named set-up as a dvc exp run line: make profile NAME=paper (APPLY=1 writes it to params.yaml)
	@python -m t2i_feedback.tools.profile $(NAME) $(if $(call yes,$(APPLY)),--apply)

ledger: $(READY) ## what the MLLMs were asked: calls, failures, tokens, seconds, cost
	@python -m t2i_feedback.tools.ledger

retry-failed: $(READY) ## ask the MLLMs again what failed (refused, unreadable, cut off, lost) and rerun those stages
	@python -m t2i_feedback.tools.ledger --retry-failed

forget: $(READY) ## forget all answers of a catalogue entry, valid ones too: make forget ENTRY=gpt4
	@python -m t2i_feedback.tools.ledger --forget "$(ENTRY)"

# What stands in the environment reaches the program as it was typed, quotes, dollars and all.
improve: $(READY) ## improve a prompt of your own: make improve PROMPT="a red house" (PROMPTS=file ADAPTER=models/lora ROUNDS=4 MLLM=gpt4 PROFILE=paper)
	@python -m t2i_feedback.tools.improve $(if $(PROMPTS),--prompts "$(PROMPTS)") $(if $(ADAPTER),--adapter "$(ADAPTER)") \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MLLM),--mllm $(MLLM)) $(if $(PROFILE),--profile "$(PROFILE)") $(if $(SEED),--seed $(SEED))

feedback: $(READY) ## fine-tune to a taste of your own in a browser: make feedback PREFERENCE="scenes at night" (EPOCHS=8 QUESTIONS=16 PAIRS=1)
	@python -m t2i_feedback.tools.unlock
	@python -m t2i_feedback.tools.feedback $(if $(PREFERENCE),--preference "$$PREFERENCE") $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(QUESTIONS),--questions $(QUESTIONS)) $(if $(call yes,$(PAIRS)),--pairs)

gallery: $(READY) ## images of several runs side by side in one file: make gallery RUNS="workspace my-experiment" (OUT=gallery.html CAPTIONS=256)
	@python -m t2i_feedback.tools.gallery $(RUNS) $(if $(OUT),--out "$(OUT)") $(if $(CAPTIONS),--captions $(CAPTIONS))

calibrate: $(READY) ## can a catalogue entry judge? make calibrate JUDGE=llava16-7b: a table, images in calibrated/
	@python -m t2i_feedback.tools.calibrate_entry $(JUDGE)

preflight: $(READY) ## would fine-tuning train on the right numbers? replays a small rollout of the present parameters
	@python -m t2i_feedback.tools.preflight

doctor: $(READY) ## what can this machine run, and what is the matter? each problem with its remedy
	@python -m t2i_feedback.tools.doctor

estimate: $(READY) ## hours, calls and dollars before a run: make estimate PROFILE=paper GPUS=8 GPU=a100 (JSON=1: for a program; several: PROFILE="paper coco30k")
	@python -m t2i_feedback.tools.estimate $(PROFILE) $(if $(GPUS),--gpus $(GPUS)) $(if $(GPU),--gpu $(GPU)) $(if $(call yes,$(JSON)),--json)

gpu-check: $(READY) ## what only a GPU can show, without a download, 8 minutes a call: PARTS="sd15 llava nccl" (all) DEVICE=cpu WRITE=1
	@python -m t2i_feedback.tools.gpu_check $(PARTS) $(if $(DEVICE),--device $(DEVICE)) $(if $(call yes,$(WRITE)),--write)

bench: $(READY) ## measure: judging, drawing and evaluating as ratios; SD 1.5's memory; time and memory of every stage
	python benchmarks/judges.py
	python benchmarks/generation.py
	python benchmarks/memory.py
	python benchmarks/evaluation.py
	python benchmarks/pipeline.py

TABLE = python -m t2i_feedback.tools.paper $@ --profile $(if $(filter undefined,$(origin PROFILE)),paper,$(PROFILE)) --jobs $(or $(JOBS),1) $(if $(call yes,$(COLLECT)),--collect)

table1: $(READY) ## the paper's table 1, 13 rows: PROFILE=paper JOBS=1 ROWS="raw gpt4 ..." (all), COLLECT=1 runs nothing
	@$(TABLE) $(if $(ROWS),--rows $(ROWS))

table2: $(READY) ## the paper's fine-tuning table: PROFILE, COLLECT as above
	@$(TABLE)

sealed: $(READY) ## what is claimed, on captions nothing was chosen on: the experiment once per sealed seed: SEEDS=5 PROFILE= COLLECT=1
	@python -m t2i_feedback.tools.sealed --seeds $(or $(SEEDS),5) $(if $(PROFILE),--profile $(PROFILE)) $(if $(call yes,$(COLLECT)),--collect)

rehearse: $(READY) ## both tables with small stand-ins for every model and for COCO, in a clone; to rehearsal/results
	@python -m rehearsal

pretrain: $(READY) ## train the embedded models from nothing (about 3 hours); the weights are committed, nobody needs this
	dvc --cd pretrain repro

model-card: $(READY) ## measure the embedded models and rewrite their card; fails where a committed figure no longer holds
	dvc repro finetune
	python pretrain/model_card.py --adapter models/lora
	python pretrain/flow_card.py

clean: ## delete the partial work of interrupted stages; results and the ledger's answers stay
	rm -rf .cache/partial
