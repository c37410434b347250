"""Trained networks on images: logits, measurements, the most probable classes, a page to drop an image on."""
