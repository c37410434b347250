"""Explanations of images for `python -m bagnet_lightning.explain`: maps of evidence, pictures and a page."""
