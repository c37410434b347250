"""What `python -m bagnet_lightning.analyze` measures: what decisions rest on, and how well maps of evidence say so."""
