"""Runs steps: what they are, where their artifacts are kept, who computes them, on one machine or many."""
