"""Writes a model as programs that run without this code, and their weights.

usage:
  clip-jax export --model=REF --out=DIR [--dtype=…] [--platforms=…] [--onnx]

examples:
  clip-jax export --model=runs/emoji --out=exported
  clip-jax export --model=REF --out=exported --dtype=bfloat16 --platforms=tpu
  clip-jax export --model=REF --out=exported --onnx --json

DIR holds both encoders as StableHLO (jax.export) for any batch size, and their
weights, tokenizer and preprocessing; its README.md shows how JAX alone runs
them. The encoders take uint8 pixels [b, S, S, 3] and int32 token ids [b, T],
and give float32 features [b, E] of unit length. Platforms are lowered for; no
such device is needed, and only the one at hand is ever run.

With --onnx they are written as ONNX too, in float32, and run by onnxruntime on
random input: features that differ from the model's by more than 0.0001 are an
error. DIR appears when it is whole. With --overwrite an earlier export there is
replaced; other files never are.
"""

from pathlib import Path

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  common_flags.define_path(values, 'out', 'the folder to make')
  flags.DEFINE_string(
    'dtype',
    'float32',
    'of the arithmetic: float32 or bfloat16',
    flag_values=values,
  )
  flags.DEFINE_list(
    'platforms',
    ['cpu', 'cuda', 'tpu'],
    'what to lower for: cpu, cuda, tpu',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'onnx', False, 'write and check ONNX files as well', flag_values=values
  )
  flags.DEFINE_bool(
    'overwrite', False, 'replace an earlier export', flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Exports, and says what was written."""
  common_flags.no_words('export', words)
  model_flags.reference_of(values)
  out = Path(common_flags.require(values.out, 'out', 'name a folder'))

  from clip_jax.inference.export import check_call, export

  # A wrong call is refused before a model is loaded for it.
  check_call(out, values.dtype, values.platforms, values.overwrite, values.onnx)
  manifest, differences = export(
    model_flags.load_model(values, dtype=values.dtype),
    out,
    platforms=values.platforms,
    overwrite=values.overwrite,
    onnx=values.onnx,
  )
  files = [
    {'name': path.name, 'bytes': path.stat().st_size}
    for path in sorted(out.iterdir())
  ]
  if values.json:
    result = {'out': str(out), 'files': files}
    result['platforms'] = list(manifest.platforms)
    result['dtype'] = manifest.dtype
    if values.onnx:
      result['onnx'] = {'max_difference': differences}
    printing.print_json(result)
    return
  for file in files:
    print(f'{file["bytes"]:>15,}  {file["name"]}')
  for name, difference in differences.items():
    print(f'{name}.onnx differs from the model by at most {difference:.1e}.')
  print(f'{", ".join(manifest.platforms)}, {manifest.dtype} -> {out}')
