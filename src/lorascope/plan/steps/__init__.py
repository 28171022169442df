"""From a study to its steps: runs, searches, measures, results."""
