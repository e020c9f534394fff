"""Figures, one file each: figure objects without pyplot, so that none shares state."""
