"""Measures this machine: the figures of `clip-jax bench`.

Compilation and the first calls are left out of every figure. A rate of the
train step and of the input pipeline is that of one uninterrupted stretch of
steps; other figures are medians over calls. Machines are noisy: only figures of
one run can be compared.
"""
