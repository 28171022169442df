"""Serving: what a trained adapter costs in use, compared with the model it could be merged into."""
