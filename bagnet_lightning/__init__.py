"""Patch-based image classifiers (BagNets) on low-resolution images: training, tables, evidence.

.. include:: ../docs/tutorial.md
"""

from bagnet_lightning.torchvision_cpu import define_missing_operators_before_import

define_missing_operators_before_import()

__version__ = "0.1.0"
