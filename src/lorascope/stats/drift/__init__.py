"""Statistics of drift: arms with variances, ratios, profiles."""
