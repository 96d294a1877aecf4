"""The evaluators: one file a task, each with a function `evaluate`."""
