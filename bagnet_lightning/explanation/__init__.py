"""What `python -m bagnet_lightning.explain` shows: images in, maps of evidence, pictures and a page out."""
