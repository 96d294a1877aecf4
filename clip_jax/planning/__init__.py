"""Finds out what a run would need on a TPU that is not there, by compiling.

`plan` compiles the train step of a config for a named topology (in a child
process, `child.py`), reads the optimized program (`hlo.py`, `costs.py`,
`collectives.py`) and estimates the time of a step (`estimate.py`); `fit.py`
searches for settings that fit.
"""
