"""The written plan of a study, and the sentences that the command line shares with it."""
