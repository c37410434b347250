"""Training of one run: from its configuration to checkpoints and measurements."""
