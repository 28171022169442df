"""Statistics of quality: scores by seed and example, bootstraps, tests, power."""
