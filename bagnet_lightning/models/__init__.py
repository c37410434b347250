"""Networks, from images to logits. No training code."""
