"""What a measure of finished runs is: how it is planned, and what it hands to the analysis."""
