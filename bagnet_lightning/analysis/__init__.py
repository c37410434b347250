"""Measurements of `python -m bagnet_lightning.analyze`: what decisions depend on, and how well maps show it."""
