"""The part of a report on the search for hyper-parameters."""
