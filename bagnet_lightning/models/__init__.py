"""Networks: images in, logits out. Nothing of training."""
