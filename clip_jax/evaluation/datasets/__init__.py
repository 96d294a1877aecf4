"""The paper's data sets: what they are called, where they are, what to ask.

`table.py` has a row for each, `prompts/NAME.json` its names and templates,
`names.py` finds a source's labels among the names, `opening.py` opens them, and
`published.py` has the paper's own results.
"""
