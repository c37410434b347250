"""Images: from files to a packed store to augmented batches."""
