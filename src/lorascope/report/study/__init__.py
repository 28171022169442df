"""The report of a study: summary, results, differences, costs, sources, limitations; its figures and its tables."""
