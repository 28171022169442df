"""Who computes steps on one machine: this process, or warm worker processes."""
