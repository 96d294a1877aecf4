"""Which job it is, so that parts of different ones are never mixed."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from clip_jax.inference.fingerprint import fingerprint
from clip_jax.inference.model import Model

VERSION = 2  # of the parts' files

# What a person calls the fields; those that are not named here may differ.
_MEANINGS = {
  'version': "the version of the parts' format",
  'model': 'the model',
  'preprocessing': 'the preprocessing',
  'tokenizer': 'the tokenizer',
  'dtype': 'the dtype',
  'images': '--images',
  'captions': '--captions',
  'records': 'the number of records',
  'texts': '--texts',
  'texts_hash': 'the content of --texts',
}


def identity_of(
  model: Model,
  *,
  dtype: str,
  images: str,
  captions: list[str],
  records: int,
  outline: Iterable[str],
  texts: str,
  lines: Iterable[str],
) -> dict[str, Any]:
  """Everything that the rows of a job depend on, as JSON has it.

  Args:
    model: its parameters count, not where they lie.
    dtype: of the arithmetic.
    images: the SPEC, or ''.
    captions: the columns with captions.
    records: how many the SPEC has.
    outline: of these; see `Source.outline`.
    texts: the name of the file of texts, or ''.
    lines: its texts.
  """
  return {
    'version': VERSION,
    'model': fingerprint(model.params),
    'origin': model.origin,
    'step': model.step,
    'preprocessing': model.preprocessing.to_dict() if images else None,
    'tokenizer': _tokenizer_hash(model) if texts else None,
    'dtype': dtype,
    'images': images,
    'captions': captions,
    'records': records,
    'outline': _hash_of(outline),
    'texts': texts,
    'texts_hash': _hash_of(lines),
  }


def differences(
  new: dict[str, Any],
  old: dict[str, Any],
  fields: Iterable[str] = tuple(_MEANINGS),
) -> list[str]:
  """Describes in a few words each field in which two jobs differ.

  Args:
    fields: that are compared.
  """
  found = []
  for field in fields:
    meaning = _MEANINGS[field]
    ours, theirs = _plain(new.get(field)), _plain(old.get(field))
    if ours == theirs:
      continue
    if field == 'model':
      ours, theirs = _model(new), _model(old)
    if field in ('texts_hash', 'tokenizer', 'preprocessing'):
      found.append(f'{meaning} is different')
    else:
      found.append(f'{meaning} is {ours}, theirs is {theirs}')
  return found


def _plain(value: Any) -> Any:
  """As JSON gives it back: tuples are lists."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return value


def _model(identity: dict[str, Any]) -> str:
  step = identity.get('step')
  after = f' at step {step:,}' if isinstance(step, int) else ''
  return (
    f'{identity.get("origin") or "of unknown origin"}{after} '
    f'({str(identity.get("model"))[:8]})'
  )


def _tokenizer_hash(model: Model) -> str:
  return _hash_of([json.dumps(model.tokenizer.describe(), sort_keys=True)])


def _hash_of(lines: Iterable[str]) -> str:
  digest = hashlib.sha256()
  for line in lines:
    digest.update(line.encode('utf-8', 'surrogatepass') + b'\n')
  return digest.hexdigest()
