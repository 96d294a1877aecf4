"""Runs what `clip-jax export` wrote, with jax alone: no model code, no Flax.

    model = Exported('exported')
    model.encode_image(['a.jpg'])  # float32 [1, E], unit length
    model.encode_text(['a cat'])

Shapes: B images, S pixels a side, N texts, T tokens, E the joint space, C
labels.
"""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from jax.core import ShapedArray
from jaxtyping import Float, UInt8

from clip_jax import tokenizers
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, read_bytes, typed_path
from clip_jax.inference import artifact
from clip_jax.inference.zero_shot import ZeroShotModel, describe_model
from clip_jax.interop.safetensors_file import open_safetensors
from clip_jax.interop.tensor_file import read_aligned

# `jax.export` itself puts these into a program with a symbolic size. Any other
# custom call could reach code outside of the program.
CUSTOM_CALLS = frozenset({'shape_assertion'})
_PARSE_TIMEOUT = 120  # seconds
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_CUSTOM_CALL = re.compile(
  rf'custom_call"?(?:\s*@(?:{_QUOTED}|([\w.$-]+))'
  rf'|\([^)]*\)\s*<?\{{[^}}]*call_target_name\s*=\s*{_QUOTED})'
)


class Exported(ZeroShotModel):
  """An exported model, with the encoders of `clip_jax.Model`.

  The constructor compares all files with the manifest; weights are
  put on the device when their program is first used, and a program is
  compiled once for each batch size that it meets.

  Attributes:
    manifest: versions, platforms, dtype, shapes.
    preprocessing: how an image becomes uint8 [S, S, 3].
    logit_scale: what cosine similarities are multiplied by.
    logit_bias: what is added to them then; None where the model has none.
  """

  def __init__(self, path: str | os.PathLike, *, batch_size: int = 64):
    """Opens a directory.

    Args:
      path: what `clip-jax export --out` named.
      batch_size: rows on the device at once.
    Raises:
      UsageError: it is no such directory, or of a later format or jax; or
        this machine's platform is not among those it was exported for.
      FailureError: a file of it is damaged.
    """
    super().__init__(batch_size)
    self._path = typed_path(path)
    self.manifest = artifact.read_manifest(self._path)
    _check_runs_here(self._path, self.manifest)
    artifact.verify(self._path, self.manifest)
    description = artifact.read_description(self._path)
    file = self._path / artifact.DESCRIPTION
    check_fields(file, description, {'model': dict, 'preprocessing': dict})
    check_fields(file, description['model'], {'embed_dim': int})
    self._embed_dim: int = description['model']['embed_dim']
    self._tokenizer_description = description['tokenizer']
    self.preprocessing = Preprocessing.from_dict(description['preprocessing'])

  def __repr__(self) -> str:
    return describe_model(
      'Exported',
      f'{self.preprocessing.side} pixels',
      self._tokenizer_description,
      f'{self.manifest.dtype} for {", ".join(self.manifest.platforms)}',
      origin=os.fspath(self._path),
    )

  @property
  def logit_scale(self) -> float:
    return self.manifest.logit_scale

  @property
  def logit_bias(self) -> float | None:
    return self.manifest.logit_bias

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer that the model was exported with.

    Raises:
      UsageError: there is none.
    """
    if self._tokenizer_description is None:
      raise UsageError(
        f'{self._path} was exported without a tokenizer: give ids to '
        'encode_tokens.'
      )
    return tokenizers.from_description(self._tokenizer_description)

  def encode_pixels(
    self, pixels: UInt8[np.ndarray, 'B S S 3']
  ) -> Float[np.ndarray, 'B E']:
    """Returns image features of images that are of the model's size already."""
    return self._encode('encode_image', pixels, np.stack)

  def _encode(self, *arguments: Any, **options: Any) -> np.ndarray:
    features = super()._encode(*arguments, **options)
    if not np.isfinite(features).all():
      raise FailureError(
        f'{self._path} gives features that are not finite numbers: its weights '
        'are damaged, or were before it was exported.'
      )
    return features

  def _encoder(
    self, name: str, **options: Any
  ) -> tuple[Callable[[jax.Array], Any], Any]:
    program = (
      self._image_program if name == 'encode_image' else self._text_program
    )

    def call(rows: jax.Array) -> jax.Array:
      expected = program.input
      if rows.dtype != expected.dtype or rows.shape[1:] != expected.shape[1:]:
        raise UsageError(
          f'rows of {rows.dtype} {list(rows.shape[1:])}: the model reads '
          f'{expected.dtype} {list(expected.shape[1:])}.'
        )
      try:
        return program.call(program.weights, rows)
      except (jax.errors.JaxRuntimeError, ValueError, TypeError) as error:
        raise FailureError(
          f'a program of {self._path} cannot be run: {error}. Export the model '
          'again.'
        ) from error

    return call, np.empty((0, program.features), np.float32)

  @functools.cached_property
  def _image_program(self) -> '_Program':
    size = self.preprocessing.side
    return self._load('encode_image', np.uint8, (size, size, 3))

  @functools.cached_property
  def _text_program(self) -> '_Program':
    return self._load('encode_text', np.int32, None)

  def _load(
    self, name: str, dtype: type, shape: tuple[int, ...] | None
  ) -> '_Program':
    program = _open_program(self._path / artifact.program_file(name))
    if program.input.dtype != dtype or shape not in (
      None,
      program.input.shape[1:],
    ):
      raise artifact.damaged(
        self._path / artifact.program_file(name),
        f'it takes {program.input.dtype} {list(program.input.shape)}, and '
        f'{artifact.DESCRIPTION} says otherwise',
      )
    if program.features != self._embed_dim:
      raise artifact.damaged(
        self._path / artifact.program_file(name),
        f'it gives {program.features} features, and {artifact.DESCRIPTION} '
        f'says {self._embed_dim}',
      )
    weights = _read_weights(self._path / artifact.WEIGHTS, program.weights)
    on_device = jax.device_put(weights, may_alias=True)
    return dataclasses.replace(program, weights=on_device)


@dataclasses.dataclass(frozen=True)
class _Program:
  """An encoder as `jax.export` deserializes it.

  Attributes:
    call: (weights, rows) to features; jitted.
    weights: by name; shapes and dtypes, and then arrays.
    input: the rows' dtype and shape; the first size is any.
    features: E.
  """

  call: Callable[..., jax.Array]
  weights: dict[str, Any]
  input: ShapedArray
  features: int


def check_custom_calls(file: Path, program: jax.export.Exported) -> None:
  """Refuses a program that calls what is not part of it.

  Raises:
    FailureError: it has a custom call outside of `CUSTOM_CALLS`, or cannot be
      read.
  """
  text = _stablehlo_text(file, program.mlir_module_serialized)
  others = foreign_calls(text)
  if others:
    names = ', '.join(others)
    raise FailureError(f'{file} makes custom calls: {names}; not running it.')


def _stablehlo_text(file: Path, program: bytes) -> str:
  """Returns a program's text, parsed by a process that may crash on it."""
  script = Path(__file__).with_name('stablehlo_text.py')
  command = [sys.executable, '-P', os.fspath(script)]
  try:
    done = subprocess.run(
      command, input=program, capture_output=True, timeout=_PARSE_TIMEOUT
    )
    done.check_returncode()
    return done.stdout.decode()
  except (subprocess.SubprocessError, UnicodeDecodeError) as error:
    raise artifact.damaged(file, 'its StableHLO cannot be read') from error


def foreign_calls(text: str) -> list[str]:
  """Returns the custom calls in StableHLO that jax itself does not make."""
  calls = [a or b or c for a, b, c in _CUSTOM_CALL.findall(text)]
  names = [repr(name) for name in sorted({*calls} - CUSTOM_CALLS)]
  # A custom call in a form that the pattern does not know is refused, too.
  if len(calls) != text.count('custom_call'):
    names.append('one of an unknown form')
  return names


def _check_runs_here(path: Path, manifest: artifact.Manifest) -> None:
  version = manifest.calling_convention_version
  oldest = jax.export.minimum_supported_calling_convention_version
  newest = jax.export.maximum_supported_calling_convention_version
  if not oldest <= version <= newest:
    raise UsageError(
      f'{path} was exported by jax {manifest.jax} with calling convention '
      f'{version}, and jax {jax.__version__} reads {oldest} to {newest}: '
      'export the model again, or install that jax.'
    )
  platform = jax.default_backend().replace('gpu', 'cuda')
  if platform not in manifest.platforms:
    raise UsageError(
      f'{path} was exported for {", ".join(manifest.platforms)}, and jax runs '
      f'on {platform} here: export with --platforms={platform}, or set '
      'JAX_PLATFORMS.'
    )


def _open_program(file: Path) -> _Program:
  """Deserializes a program, which holds no weights and executes nothing.

  Raises:
    FailureError: it is not a program of two arguments, weights and rows.
  """
  try:
    data = read_bytes(file, max_bytes=None)
    program = jax.export.deserialize(bytearray(data))
    (weights, rows), options = jax.tree.unflatten(
      program.in_tree, program.in_avals
    )
    (features,) = program.out_avals
    fits = (
      isinstance(weights, dict)
      and not options
      and features.ndim == 2
      and features.shape[0] == rows.shape[0]
      and isinstance(features.shape[1], int)
      and features.dtype == np.float32
    )
  except Exception as error:  # flatbuffers, MLIR and jax raise all kinds
    raise artifact.damaged(file, 'it is not a program of jax') from error
  if not fits:
    raise artifact.damaged(file, 'it is a program of another kind')
  check_custom_calls(file, program)
  return _Program(jax.jit(program.call), weights, rows, features.shape[1])


def _read_weights(
  file: Path, expected: dict[str, ShapedArray]
) -> dict[str, np.ndarray]:
  """Returns the weights that a program takes, aligned as CPU devices need it.

  Raises:
    FailureError: one is missing, or of another shape or dtype.
  """
  with open_safetensors(file) as tensors:
    for name, aval in expected.items():
      info = tensors.infos.get(name)
      if info is None or (info.shape, info.dtype) != (aval.shape, aval.dtype):
        raise artifact.damaged(
          file, f'{name!r} is not {aval.dtype} {list(aval.shape)} in it'
        )
    return {name: read_aligned(tensors, name) for name in expected}
