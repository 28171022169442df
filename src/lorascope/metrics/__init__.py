"""Metrics: what a number is called, in which direction it is better, and how chance is estimated. Literal tables."""
