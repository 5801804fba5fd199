"""The order of samples: golden vectors, properties, and mosaicml-streaming side by side."""
