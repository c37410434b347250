"""Classical local features, or a BagNet's patches in their place, with encodings and classifiers."""
