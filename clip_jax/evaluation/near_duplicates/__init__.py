"""Near-duplicate images, for the overlap analysis (paper, section 5)."""
