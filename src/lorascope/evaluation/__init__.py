"""How good a run is, and whether its numbers can be trusted: gates, baselines, test scores."""
