"""Base models: which one is meant, where its files lie, how it is loaded."""
