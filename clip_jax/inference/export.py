"""Writes a model as programs and weights that run without its code.

See `artifact` for the directory, `programs` for what is in it, and `exported`
for what runs it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import clip_jax
from clip_jax.errors import UsageError, print_notes
from clip_jax.files import replacing_folder, typed_path
from clip_jax.inference import artifact
from clip_jax.inference.artifact import FileEntry, Manifest
from clip_jax.inference.export_readme import readme
from clip_jax.inference.exported import check_custom_calls
from clip_jax.inference.model import Model
from clip_jax.inference.programs import (
  encoders,
  flat_weights,
  lower,
  row_specs,
)
from clip_jax.interop.safetensors_file import (
  open_safetensors,
  write_safetensors,
)
from clip_jax.interop.tensor_file import read_aligned
from clip_jax.models.counting import check_variables
from clip_jax.models.description import Description
from clip_jax.trees import nested

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(
  model: Model,
  out: str | os.PathLike,
  *,
  platforms: Sequence[str] = PLATFORMS,
  overwrite: bool = False,
  onnx: bool = False,
) -> tuple[Manifest, dict[str, float]]:
  """Writes programs, weights and descriptions: all of them, or nothing.

  Args:
    model: its dtype is that of the programs.
    out: a directory that is not there yet, or empty.
    platforms: what to lower for; no such device is needed.
    overwrite: an earlier export in `out` makes way once the new one is whole.
      Anything else that lies there is never touched.
    onnx: write the encoders as ONNX too, and run them.
  Returns:
    The manifest, and how far each ONNX encoder's features are from the
    model's (empty without `onnx`).
  Raises:
    UsageError: `out` is taken, a platform is unknown, images keep their aspect,
      or ONNX is asked for in bfloat16 or without what writes it.
    FailureError: the directory cannot be written, or ONNX computes something
      else.
  """
  out = typed_path(out)
  dtype = jnp.dtype(model.module.dtype).name
  check_call(out, dtype, platforms, overwrite, onnx)
  if model.description.absent:
    raise UsageError(
      f'{model.origin or "this model"} has no {model.description.absent[0]} '
      'tower, and an export holds both: name a whole model.'
    )
  if model.preprocessing.is_native:
    raise UsageError(
      f'{model.origin or "this model"} reads images of native aspect (NaFlex), '
      'which an exported program does not: use the model itself.'
    )
  model = _encoders_alone(model)
  differences: dict[str, float] = {}
  with replacing_folder(out) as part:
    weights = flat_weights(model)
    programs = _write_programs(part, model, weights, platforms)
    write_safetensors(part / artifact.WEIGHTS, weights, {'format': 'flax'})
    text = json.dumps(model.description.to_dict(), ensure_ascii=False)
    (part / artifact.DESCRIPTION).write_text(text, 'utf-8')
    if onnx:
      from clip_jax.inference.onnx_export import write_onnx

      differences = write_onnx(part, model, weights)
    manifest = _write_manifest(part, model, programs, platforms, differences)
  return manifest, differences


def _encoders_alone(model: Model) -> Model:
  """Returns the model without its caption decoder, if any, and says so."""
  description, variables, lines = model.description.without_decoder(
    model.variables
  )
  if not lines:
    return model
  print_notes(lines)
  dtype = jnp.dtype(model.module.dtype).name
  return Model(description, variables, dtype=dtype, origin=model.origin)


def load_exported(
  path: str | os.PathLike, dtype: np.dtype | None = None
) -> tuple[dict[str, Any], Description]:
  """Returns the variables and the description of an exported model.

  Args:
    path: the exported directory.
    dtype: of floating-point arrays; None is the file's own, in which the
      matrices of an export in bfloat16 are of that dtype.
  Returns:
    Collections by name of numpy arrays, and what they mean.
  Raises:
    UsageError: there is no exported directory at `path`.
    FailureError: a file of it is damaged.
  """
  path = typed_path(path)
  artifact.verify(path, artifact.read_manifest(path))
  file = path / artifact.DESCRIPTION
  try:
    description = Description.from_dict(artifact.read_description(path))
  except UsageError as error:
    raise artifact.damaged(file, str(error)) from error
  with open_safetensors(path / artifact.WEIGHTS) as tensors:
    check_variables(description.model, tensors.infos, str(file))
    weights = {
      name: read_aligned(
        tensors,
        name,
        dtype if jnp.issubdtype(info.dtype, jnp.floating) else None,
      )
      for name, info in tensors.infos.items()
    }
  return nested(weights), description


def check_call(
  out: Path,
  dtype: str,
  platforms: Sequence[str],
  overwrite: bool,
  onnx: bool,
) -> None:
  """Refuses early, before a model is loaded, what `export` could not do.

  Raises:
    UsageError: as `export` does.
  """
  if dtype not in ('float32', 'bfloat16'):
    raise UsageError(f'dtype={dtype!r}: use float32 or bfloat16.')
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown or not platforms:
    raise UsageError(
      f'no platform {(unknown or [""])[0]!r}: give some of '
      f'{", ".join(PLATFORMS)}.'
    )
  if onnx:
    from clip_jax.inference.onnx_export import check_possible

    check_possible(dtype)
  if not out.parent.is_dir():
    raise UsageError(f'{out}: there is no folder {out.parent}.')
  if out.is_symlink() or (out.exists() and not out.is_dir()):
    raise UsageError(f'{out} is not a folder: name one to be made.')
  if not out.exists() or not any(out.iterdir()):
    return
  if not artifact.is_artifact(out):
    raise UsageError(f'{out} holds other files: name a new folder.')
  if not overwrite:
    raise UsageError(
      f'{out} holds an earlier export: name a new folder, or --overwrite it.'
    )


def _write_programs(
  part: Path,
  model: Model,
  weights: Mapping[str, np.ndarray],
  platforms: Sequence[str],
) -> dict[str, jax.export.Exported]:
  programs, rows = {}, row_specs(model)
  for name, encoder in encoders(model).items():
    file = part / artifact.program_file(name)
    program = lower(encoder, weights, rows[name], platforms)
    check_custom_calls(file, program)
    file.write_bytes(program.serialize())
    programs[name] = program
  return programs


def _write_manifest(
  part: Path,
  model: Model,
  programs: Mapping[str, jax.export.Exported],
  platforms: Sequence[str],
  differences: Mapping[str, float],
) -> Manifest:
  """Writes manifest.json, and README.md, which tells people the same."""
  shapes = {
    name: {
      'input': _shape(program.in_avals[-1]),
      'output': _shape(program.out_avals[0]),
    }
    for name, program in programs.items()
  }
  dtype = jnp.dtype(model.module.dtype).name
  facts = {'clip_jax': clip_jax.__version__, 'jax': jax.__version__}
  files = sorted(file.name for file in part.iterdir())
  text = readme(model, platforms, facts | {'dtype': dtype}, files, differences)
  (part / artifact.README).write_text(text, 'utf-8')
  manifest = Manifest(
    **facts,
    calling_convention_version=max(
      program.calling_convention_version for program in programs.values()
    ),
    platforms=tuple(platforms),
    dtype=dtype,
    logit_scale=model.logit_scale,
    logit_bias=model.logit_bias,
    programs=shapes,
    files={
      file.name: FileEntry(file.stat().st_size, artifact.file_sha256(file))
      for file in sorted(part.iterdir())
    },
  )
  (part / artifact.MANIFEST).write_text(manifest.to_json(), 'utf-8')
  return manifest


def _shape(aval: Any) -> dict[str, Any]:
  shape = [n if isinstance(n, int) else str(n) for n in aval.shape]
  return {'dtype': aval.dtype.name, 'shape': shape}
