"""Which datasets are open, and how a source becomes tables."""
