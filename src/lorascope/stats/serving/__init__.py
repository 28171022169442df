"""Statistics of serving: overheads over repeats, fits, break-even, advice."""
