"""Drift: how far fine-tuning moved a model from its base."""
