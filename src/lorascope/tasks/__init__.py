"""Tasks: what an example is, how a model reads it, what it predicts and how that is scored."""
