"""The identity of a model, so that embeddings of two never mix."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import UInt64

if TYPE_CHECKING:
  from clip_jax.inference.model import Model

_SAMPLES = 4096  # elements read of each array
# Training starts with these values; features do not depend on them.
_NOT_USED = ('initial_logit_scale', 'initial_logit_bias')


def model_identity(model: 'Model') -> dict[str, Any]:
  """Returns what tells a model from others, as JSON has it.

  Its arrays do not say which activation it has, nor how many heads: 'config'
  does. 'origin' and 'step' tell people where it came from.
  """
  variables = model.variables
  statistics = variables.get('batch_stats')
  identity = {
    'model': fingerprint(variables['params']),
    'batch_stats': fingerprint(statistics) if statistics else None,
    'config': _stated_fields(model.config),
    'origin': model.origin,
    'step': model.step,
  }
  return json.loads(json.dumps(identity))


def _stated_fields(config: Any) -> dict[str, Any]:
  """Returns the fields of a config that differ from their defaults.

  A field that is added in a later version so leaves all identities as they are.
  """
  fields = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != field.default
    and field.name not in _NOT_USED
  }
  return {
    name: _stated_fields(value) if dataclasses.is_dataclass(value) else value
    for name, value in fields.items()
  }


def fingerprint(params: Any) -> str:
  """Returns a hash of the parameters: names, shapes, dtypes, samples of each.

  It reads a few megabytes of a model of any size, and is the same wherever the
  parameters lie, on whatever device and in whatever file layout they came.

  Args:
    params: a tree of numpy or JAX arrays.
  Returns:
    32 hexadecimal digits.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {leaf.dtype} {list(leaf.shape)}\n'.encode())
    stride = max(1, leaf.size // _SAMPLES)
    sample = jax.device_get(leaf.reshape(-1)[::stride])
    digest.update(np.ascontiguousarray(sample).tobytes())
  return digest.hexdigest()[:32]


def hash_lines(lines: Iterable[str]) -> str:
  """Returns the SHA-256 of some lines, in hexadecimal."""
  digest = hashlib.sha256()
  for line in lines:
    digest.update(line.encode('utf-8', 'surrogatepass') + b'\n')
  return digest.hexdigest()


def hash_each(texts: Iterable[str]) -> UInt64[np.ndarray, ' N']:
  """Returns eight bytes for each text, the same for tables of all formats."""
  encoded = (x.encode('utf-8', 'backslashreplace') for x in texts)
  hashes = [hashlib.blake2b(x, digest_size=8).digest() for x in encoded]
  return np.frombuffer(b''.join(hashes), '<u8')


def hash_tokenizer(description: Any) -> str:
  """Returns the SHA-256 of a tokenizer's description, in hexadecimal."""
  return hash_lines([json.dumps(description, sort_keys=True)])
