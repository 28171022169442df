"""From a YAML file to a study, or to errors people can use; templates and schema."""
