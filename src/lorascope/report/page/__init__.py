"""What all parts of a report are made of: documents, facts, wording, canvas, and the formats they are written in."""
