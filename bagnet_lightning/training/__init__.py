"""One run: a configuration in, trained checkpoints and measurements out."""
