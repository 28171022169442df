"""The search for hyper-parameters, replayed from what its trials have given."""
