# Everyday commands. `make demo` and `make test` need nothing but Python 3.10 or newer: each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
TRAIN := $(BIN)/python -m bagnet_lightning.train
GRID := model=bagnet9,bagnet17,bagnet33 optim=sgd,adam,adadelta
# Where there is no NVIDIA GPU, the small CPU builds of torch and torchvision, if their index can be reached.
CPU_WHEELS := https://download.pytorch.org/whl/cpu
INDEX = $(shell test -e /proc/driver/nvidia/version || \
	curl --silent --fail --head --max-time 10 --output /dev/null $(CPU_WHEELS)/torch/ && echo --extra-index-url $(CPU_WHEELS))

.DEFAULT_GOAL := help
.PHONY: help install demo test lint prepare train table1 report t4 k80 clean

help: ## these lines
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

install: $(BIN)/installed ## the package and all it needs, in .venv

$(BIN)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(INDEX) --editable '.[dev]'
	touch $@

demo: install ## the 3 x 3 grid on generated textures, a table and a figure: minutes on a CPU
	$(TRAIN) -m $(GRID) sweep=demo data=textures model.width=0.25 model.stem_momentum=0.1 trainer.max_epochs=5

test: install ## all tests
	$(BIN)/python -m pytest

lint: install ## ruff's checks and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

prepare: install ## downloads and packs Tiny ImageNet
	$(BIN)/python -m bagnet_lightning.prepare

train: install ## the 3 x 3 grid on Tiny ImageNet
	$(TRAIN) -m $(GRID)

table1: install ## the paper's 17 rows
	$(TRAIN) -m 'table1=glob(*)' sweep=table1

report: install ## the table of the 17 rows, as far as they are
	$(BIN)/python -m bagnet_lightning.report runs=multirun_outputs/table1

t4: install ## the 17 rows on a Tesla T4
	$(TRAIN) -m 'table1=glob(*)' sweep=table1 trainer=t4

k80: install ## the 17 rows on a Tesla K80, as the paper did
	$(TRAIN) -m 'table1=glob(*)' sweep=table1 trainer=k80

clean: ## what can be made again, but no results and no data
	rm -rf .venv build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
