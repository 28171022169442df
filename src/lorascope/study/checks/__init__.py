"""What must hold of a study beyond the shape of its file."""
