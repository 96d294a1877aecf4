"""JSON objects of other people's files, in and out."""

import json
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object of a file; empty where there is no such file.

  Raises:
    FailureError: the file cannot be read, or holds something else.
  """
  try:
    content = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError) as error:
    raise FailureError(f'{path} is not JSON: {error}.') from error
  if not isinstance(content, dict):
    raise FailureError(f'{path} holds no JSON object.')
  return content


def to_bytes(content: dict[str, Any]) -> bytes:
  """An object as the content of a file that a person may read."""
  return json.dumps(content, ensure_ascii=False, indent=2).encode() + b'\n'
