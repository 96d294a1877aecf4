"""One thin file a verb: flags in, one call, a printed result out.

Each has `define_flags(values)` and `run(values, words)`, where `words` are the
arguments that are not flags, and a docstring that is its help. Heavy imports
stand inside `run`, so that help and wrong calls are answered at once.
"""
