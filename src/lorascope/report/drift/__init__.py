"""The part of a report on drift: answer, figures, tables, limits."""
