"""The part of a report on serving: answer, figures, tables, limits."""
