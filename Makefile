# Everyday commands. `make demo` and `make test` need nothing but Python 3.10 or newer: each sets up .venv by itself.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= constraints.txt
EXTRA ?= dev
BIN := $(VENV)/bin
TRAIN := $(BIN)/python -m bagnet_lightning.train
GRID := model=bagnet9,bagnet17,bagnet33 optim=sgd,adam,adadelta
# Where there is no NVIDIA GPU, the small CPU builds of torch and torchvision, if their index can be reached.
CPU_WHEELS := https://download.pytorch.org/whl/cpu
INDEX = $(shell test -e /proc/driver/nvidia/version || \
	curl --silent --fail --head --max-time 10 --output /dev/null $(CPU_WHEELS)/torch/ && echo --extra-index-url $(CPU_WHEELS))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-cluster docs lint prepare train table1 report readme-tables wandb-sync doctor t4 k80 clean

help: ## these lines
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

install: $(BIN)/installed ## the package and all it needs, in .venv

$(BIN)/installed: pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) $(INDEX) --editable '.[$(EXTRA)]'
	touch $@

demo: install ## the 3 x 3 grid on generated textures, a table and a figure: minutes on a CPU
	$(TRAIN) -m $(GRID) sweep=demo data=textures model.width=0.25 model.stem_momentum=0.1 trainer.max_epochs=5

test: install ## all tests but those of clusters
	$(BIN)/python -m pytest --numprocesses=auto

test-cluster: install ## sweeps on real engines on this machine, with nodes and jobs killed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(INDEX) --editable '.[dev,ray]'
	@command -v slurmd > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -yqq slurm-wlm munge; } \
		> /dev/null 2>&1 || echo "no SLURM, and it needs root and apt-get to install it: its tests are skipped"
	$(BIN)/python -m pytest -m cluster tests/cluster

docs: install ## the API reference and the tutorial, in build/docs
	$(BIN)/python -m pdoc --output-directory build/docs bagnet_lightning

lint: install ## ruff's checks and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

prepare: install ## downloads and packs Tiny ImageNet
	$(BIN)/python -m bagnet_lightning.prepare

train: install ## the 3 x 3 grid on Tiny ImageNet
	$(TRAIN) -m $(GRID)

table1: install ## the paper's 17 rows
	$(TRAIN) -m 'table1=glob(*)' sweep=table1

report: install ## the table of the 17 rows, as far as they have finished
	$(BIN)/python -m bagnet_lightning.report runs=multirun_outputs/table1

readme-tables: install ## README's tables anew, from results/
	$(BIN)/python benchmarks/readme_tables.py

wandb-sync: install ## uploads what W&B runs kept offline
	find multirun_outputs -type d -path '*/wandb/offline-run-*' -prune -exec $(BIN)/wandb sync {} +

doctor: install ## what this machine would train on, and what would go wrong with a sweep
	$(BIN)/python -m bagnet_lightning.doctor

t4: install ## the 17 rows on a Tesla T4
	$(BIN)/python -m bagnet_lightning.doctor trainer=t4
	$(TRAIN) -m 'table1=glob(*)' sweep=table1 trainer=t4

k80: ## the 17 rows on the paper's card, a Tesla K80: two at a time, one on each die
	$(MAKE) install VENV=.venv-k80 LOCK=constraints-k80.txt EXTRA=ray
	.venv-k80/bin/python -m bagnet_lightning.doctor trainer=k80
	.venv-k80/bin/python -m bagnet_lightning.train -m 'table1=glob(*)' sweep=table1 trainer=k80 hydra/launcher=ray

clean: ## removes what can be made again, but no results and no data
	rm -rf .venv .venv-k80 build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
