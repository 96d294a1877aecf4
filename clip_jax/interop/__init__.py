"""Other ecosystems' weights: safe readers, and tables of layouts.

Nothing in a file that is read here is ever executed.
"""
