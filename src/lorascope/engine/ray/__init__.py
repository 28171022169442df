"""Who computes steps on the machines of a Ray cluster."""
