"""Classical features, encodings and classifiers, and a BagNet's patches among them."""
