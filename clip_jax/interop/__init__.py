"""Reads and writes other libraries' weights: safe readers, tables of layouts.

Nothing in a file that is read here is ever executed.
"""
