"""Serving: what a trained run costs where it is used, behind real inference engines."""
