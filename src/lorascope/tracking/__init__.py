"""Shows a study while it runs in the tools that people track experiments with."""
