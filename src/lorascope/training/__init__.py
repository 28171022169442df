"""The loop that trains runs, several at a time where that pays."""
