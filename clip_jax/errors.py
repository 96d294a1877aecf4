"""The two kinds of error that a user meets, and the exit codes they become.

A message is one line: what was wrong, where, and what would be right.
"""

from collections.abc import Collection


class UsageError(ValueError):
  """The call was wrong (exit code 2): a flag, a key, a path, a SPEC."""


class FailureError(RuntimeError):
  """The call was right and the work failed (exit code 1)."""


def check_choice(name: str, value: str, known: Collection[str]) -> None:
  """Refuses a value that is none of a few.

  Raises:
    UsageError: it names what was set, and what is known.
  """
  if value not in known:
    raise UsageError(f'{name}={value!r}: choose one of {", ".join(known)}.')
