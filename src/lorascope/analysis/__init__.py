"""The analysis step: everything that finished, as one table, facts and verdicts."""
