"""The figures of a report, one file each. Every `draw_*` takes the facts and a width in inches and returns a Figure."""
