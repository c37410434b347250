"""Pretraining without labels: tiles of images, methods that compare them, and the run that leaves a backbone."""
