"""The examples of a task: where they come from, how they are split, and how they are kept."""
