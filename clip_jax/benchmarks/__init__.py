"""Measures this machine: the figures of `clip-jax bench`.

Compilation and the first calls are left out of every figure. A rate of the
train step and of the input pipeline is that of one uninterrupted stretch of
steps; the others are medians of several calls. Machines are noisy: comparisons
are worth something only within one run.
"""
