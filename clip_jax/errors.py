"""The two kinds of error that a user meets, and the exit codes they become.

A message is one line: what was wrong, where, and what would be right.
"""


class UsageError(ValueError):
  """The call was wrong (exit code 2): a flag, a key, a path, a SPEC."""


class FailureError(RuntimeError):
  """The call was right and the work failed (exit code 1)."""
