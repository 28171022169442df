"""The facts of a study (facts.json) as types."""
