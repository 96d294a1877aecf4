"""The paper's data sets: their splits, class names, prompts and metrics.

`table.py` has a row for each, `prompts/NAME.json` its names and templates,
`names.py` matches a source's labels with the names, `opening.py` opens them,
and `published.py` has the paper's own results.
"""
