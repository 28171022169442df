"""Serving: what a trained adapter costs in use, beside the model it could be merged into."""
