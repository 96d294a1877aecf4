"""The README.md of an exported directory: what is in it, and how it is used."""

import importlib.resources
import string
from collections.abc import Mapping, Sequence

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.inference.model import Model

_SOFTMAX = """\
logits = manifest['logit_scale'] * images @ texts.T
probabilities = jax.nn.softmax(logits)"""
_SIGMOID = """\
logits = manifest['logit_scale'] * images @ texts.T + manifest['logit_bias']
probabilities = jax.nn.sigmoid(logits)"""
_ONNX = """
## With onnxruntime

The two `.onnx` files need neither jax nor the weights above. When they were
written, onnxruntime computed on random input what the model does, to
$difference.

```python
import numpy as np
import onnxruntime


def encode_onnx(name, rows):
  session = onnxruntime.InferenceSession(
    name, providers=['CPUExecutionProvider']
  )
  [given] = session.get_inputs()
  return session.run(['features'], {given.name: rows})[0]


images = encode_onnx(
  'encode_image.onnx', np.zeros((2, $size, $size, 3), np.uint8)
)
texts = encode_onnx('encode_text.onnx', np.zeros((3, $length), np.int32))
```
"""


def readme(
  model: Model,
  platforms: Sequence[str],
  facts: Mapping[str, str],
  files: Sequence[str],
  differences: Mapping[str, float],
) -> str:
  """Returns the text, for this model and the files that lie there.

  Args:
    model: what was exported.
    platforms: what its programs were lowered for.
    facts: the versions 'clip_jax' and 'jax', and the 'dtype'.
    files: names in the directory.
    differences: of each ONNX encoder from the model; empty where there is none.
  """
  source = importlib.resources.files('clip_jax.inference')
  template = (source / 'exported_readme.md').read_text('utf-8')
  sizes = {
    'size': model.preprocessing.side,
    'length': model.config.text.context_length,
    'embed': model.config.embed_dim,
  }
  section = ''
  if differences:
    worst = f'{max(differences.values()):.1e} in any feature'
    section = string.Template(_ONNX).substitute(sizes, difference=worst)
  background = model.preprocessing.background
  return string.Template(template).substitute(
    facts,
    **sizes,
    lowered=_lowered(platforms),
    probabilities=_SOFTMAX if model.logit_bias is None else _SIGMOID,
    onnx_too=' The encoders are here as ONNX, too.' if differences else '',
    onnx_rows=_onnx_rows(files, sizes),
    onnx_section=section,
    grey=' (grey of 16 bits apart, which clip_jax scales)'
    if background
    else '',
    pixels_of=pixels_of(model.preprocessing),
  )


def _lowered(platforms: Sequence[str]) -> str:
  """Says which platforms the programs run on, and which were tested."""
  tested = "clip_jax's tests run them on CPUs."
  if len(platforms) > 1:
    return (
      f'lowered them for {", ".join(platforms)}, which takes no such device: '
      f'{tested}'
    )
  [only] = platforms
  if only == 'cpu':
    return (
      'lowered them for cpu alone: to run them on an accelerator, export the '
      'model for it (`--platforms=cuda`).'
    )
  return (
    f'lowered them for {only} alone, which takes no such device: they run '
    f'nowhere else, and were not run when they were written.'
  )


def _onnx_rows(files: Sequence[str], sizes: Mapping[str, int]) -> str:
  size, length, embed = sizes['size'], sizes['length'], sizes['embed']
  meanings = {
    'encode_image.onnx': f'ONNX: `pixels`, uint8 [b, {size}, {size}, 3] -> '
    f'`features`, float32 [b, {embed}], unit length',
    'encode_text.onnx': f'ONNX: `tokens`, int32 [b, {length}] -> `features`, '
    f'float32 [b, {embed}], unit length',
    'encode_image.onnx.data': 'the weights of `encode_image.onnx`',
    'encode_text.onnx.data': 'the weights of `encode_text.onnx`',
  }
  return ''.join(
    f'| `{name}` | {meaning} |\n'
    for name, meaning in meanings.items()
    if name in files
  )


def pixels_of(preprocessing: Preprocessing) -> str:
  """Returns `preprocess` of these settings as a function of its own.

  Grey of 16 bits, which it scales where there is a background, is left out.
  """
  p, side = preprocessing, preprocessing.side
  lines = ['image = Image.open(path)']
  if p.exif:
    lines.append('image = ImageOps.exif_transpose(image)')
  ground = p.background or ('white' if p.convention == 'transformers' else None)
  if ground:
    lines += [
      f"ground = Image.new('RGBA', image.size, {ground!r})",
      "ground.alpha_composite(image.convert('RGBA'))",
      "image = ground.convert('RGB')",
    ]
  resample = f'Image.Resampling.{p.interpolation.upper()}'
  to = p.resize_to or side
  if p.resize_mode == 'shortest':
    lines += [
      'short = min(image.size)',
      f'size = [int({to} * side / short) for side in image.size]',
      f'image = image.resize(size, {resample})',
    ]
  elif p.resize_mode == 'squash':
    rows, columns = (to, to) if isinstance(to, int) else to
    size = f'({columns}, {rows})'
    lines.append(f'image = image.resize({size}, {resample})')
  elif p.resize_mode == 'longest':
    lines += [
      f'ratio = max(image.size) / {side}',
      'size = [max(1, round(side / ratio)) for side in image.size]',
      f'image = image.resize(size, {resample})',
      f'left, top = (({side} - side) // 2 for side in size)',
      f'right, bottom = {side} - size[0] - left, {side} - size[1] - top',
      'borders = (left, top, right, bottom)',
      'image = ImageOps.expand(image, borders, fill=0)',
    ]
  if p.resize_mode in ('shortest', 'none') or p.resize_to is not None:
    half = (
      f'(side - {side}) // 2'
      if p.convention == 'transformers'
      else f'round((side - {side}) / 2)'
    )
    lines += [
      f'left, top = ({half} for side in image.size)',
      f'image = image.crop((left, top, left + {side}, top + {side}))',
    ]
  lines.append("return np.asarray(image.convert('RGB'))")
  return '\n'.join(['def pixels_of(path):', *(f'  {line}' for line in lines)])
