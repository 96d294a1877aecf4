"""Robustness to natural distribution shift (paper, section 3.3)."""
