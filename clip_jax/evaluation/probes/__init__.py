"""Logistic regression on features (paper, section 3.2, appendix A.3)."""
