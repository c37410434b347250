"""Patch-based image classifiers (BagNets) on low-resolution images: training, tables, evidence.

Where things are (`conf/` holds the settings of every command, a folder for each choice):

- `train`, `pretrain`: commands; every command is one page. A run passes through `sweeps/runs`, `training/run`,
  `training/fit` (or `pretraining/fit`), `training/trainer`, and Lightning calls `training/learner`.
- `sweeps/`: many runs; checks before them, jobs elsewhere (`hydra_plugins/`), the report after them.
- `data/`: files to a packed store to augmented batches. `models/`: networks, and nothing of training.
- `results`, `predictions`, `checkpoint`: the files of a run. All that follows reads nothing else.
- `report`, `dashboard`: `reporting/`, the tables, figures and page of a sweep.
- `evidence`: exact evidence of BagNets, in Python. `explain`, `analyze`: `explanation/`, `analysis/`, evidence as
  pictures, measurements and pages, drawn by `presentation/`.
- `evaluate`, `predict`, `demo`, `export`: `inference/`, `exporting/`.
- `classical`: `local_features/`, the baselines, which results call related, as they are related work.
- `prepare`, `doctor`: data ahead of runs; `machine/`, what a machine has.
- `cli`, `config`, `rules`: the base of all commands, the digest of a run, the permitted values.

.. include:: ../docs/tutorial.md
"""

from bagnet_lightning.machine.torchvision_cpu import define_missing_operators_before_import

define_missing_operators_before_import()

__version__ = "0.1.0"
