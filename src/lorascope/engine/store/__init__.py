"""The store: artifacts, locks, and the places they lie in."""
