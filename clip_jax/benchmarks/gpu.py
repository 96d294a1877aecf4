"""Measures a GPU in one run of some minutes, beside open_clip where it is.

usage:
  python -m clip_jax.benchmarks.gpu [--minutes=12] [--against_python=PYTHON]
      [--json] [--out=FILE] [--dry_run]

Each part runs in a process of its own, so that none finds memory taken, and has
a share of the time; what does not fit into it is left out, by name. With
--dry_run the shapes are tiny, and any machine does.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import files
from clip_jax.benchmarks import loss, peer
from clip_jax.benchmarks.step import Step, paper_step, repeated
from clip_jax.benchmarks.timing import (
  Figures,
  device_facts,
  median_seconds,
  planned_bytes,
)
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.encoders import make_encoders
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import model_flops_utilization
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.layers import dot_product_attention, split_heads
from clip_jax.parallel.attention import gpu_attention, kernel_of
from clip_jax.parallel.mesh import make_mesh

_DTYPE = 'bfloat16'
_FIRST_BATCH, _MOST = 256, 32_768  # pairs, of the search for the largest batch
# JAX takes the first fraction of a GPU's memory, and a step may plan with the
# second fraction of that. The rest is left to libraries such as cuDNN.
_TAKEN, _FILLED = '0.92', 0.94
_CALLS, _MAX_SECONDS = 10, 30.0  # of one measurement
# The attention of the towers of B/32, of texts, of B/16 and of L/14: how many
# tokens, how many heads of width 64, and whether it is causal.
_ATTENTION = (
  (50, 12, False),
  (77, 8, True),
  (197, 12, False),
  (257, 16, False),
)


@dataclasses.dataclass(frozen=True)
class Part:
  """A measurement: which table its rows are in, and its share of the time."""

  kind: str
  share: int
  preset: str = ''
  library: str = 'clip_jax'

  @property
  def name(self) -> str:
    """Its name on the command line and in what is printed."""
    return ' '.join(filter(None, (self.kind, self.preset, self.library)))


PARTS = (
  Part('attention', 6),
  Part('train', 12, 'ViT-B/32'),
  Part('train', 10, 'ViT-B/32', 'open_clip'),
  Part('train', 17, 'ViT-L/14'),
  Part('train', 14, 'ViT-L/14', 'open_clip'),
  Part('train', 12, 'ViT-B/16'),
  Part('train', 10, 'ViT-B/16', 'open_clip'),
  Part('encode', 11),
  Part('loss', 8),
)


def train_rows(preset: str, dry_run: bool) -> list[Figures]:
  """Measures the train step at the largest batch that one device holds."""
  device = jax.devices()[0]
  step = paper_step(
    _model(preset, dry_run), make_mesh(devices=[device]), 100, _DTYPE, 'none'
  )
  stats = device.memory_stats() or {}
  first, most = (4, 4) if dry_run else (_FIRST_BATCH, _MOST)
  memory = stats.get('bytes_limit', 1 << 34) * _FILLED
  # The gradients are as large as the parameters.
  kept = jax.tree.leaves((step.state, step.state.params))
  fixed = sum(array.size * array.dtype.itemsize for array in kept)
  batch, compiled = largest_batch(step.compile, fixed, memory, first, most)
  # A CPU does not count the memory in use, and where a larger batch was tried,
  # the most was that one's: the compiler's plan stands for both.
  counted = True
  while True:
    try:
      seconds = _step_seconds(step, compiled, batch)
      break
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error) or batch < 2:
        raise
    batch, counted = _rounded(batch * 0.8, min(first, batch // 2)), False
    compiled = step.compile(batch)
  in_use = (device.memory_stats() or {}).get('peak_bytes_in_use')
  peak = in_use if counted and in_use else planned_bytes(compiled)
  return [
    {
      'preset': preset,
      'library': 'clip_jax',
      'batch': batch,
      'pairs_per_second': batch / seconds,
      'peak_bytes': peak,
      **device_facts(),
    }
  ]


def largest_batch(
  compile_step: Callable[[int], Any],
  fixed: int,
  memory: float,
  first: int,
  most: int,
) -> tuple[int, Any]:
  """Finds the most pairs whose step fits into memory, by the compiler's plans.

  Args:
    compile_step: takes a number of pairs.
    fixed: bytes that a step takes whatever its pairs.
    memory: bytes.
    first: the pairs to begin with; where they do not fit, half of them.
    most: pairs at most.
  Returns:
    The pairs, a multiple of half of the first ones that fit, and their compiled
    step; one pair where none fits.
  """
  smallest = compile_step(first)
  while planned_bytes(smallest) > memory and first > 1:
    first //= 2
    smallest = compile_step(first)
  of_pair = max((planned_bytes(smallest) - fixed) / first, 1e-9)
  batch = min(_rounded((memory - fixed) / of_pair, first), most)
  while batch > first:
    compiled = compile_step(batch)
    if planned_bytes(compiled) <= memory:
      return batch, compiled
    batch = _rounded(batch * 0.9, first)
  return first, smallest


def _rounded(batch: float, first: int) -> int:
  half = max(first // 2, 1)
  return max(int(batch) // half * half, first)


def _step_seconds(
  step: Step, compiled: jax.stages.Compiled, batch: int
) -> float:
  call = repeated(compiled, step.init(), step.pairs(batch))
  return median_seconds(call, _CALLS, max_seconds=_MAX_SECONDS)


def open_clip_rows(
  preset: str, batch: int, python: str | None
) -> list[Figures]:
  """Measures open_clip's step at a batch, or at the half that it can hold."""
  with peer.open_clip(preset, _DTYPE, python) as theirs:
    while True:
      try:
        seconds = median_seconds_of(lambda n=batch: theirs('train', n))
        break
      except peer.OutOfMemoryError:
        if batch < 2:
          raise
      batch //= 2
  row = {'preset': preset, 'library': 'open_clip', 'batch': batch}
  return [{**row, 'pairs_per_second': batch / seconds}]


def median_seconds_of(turn: Callable[[], float]) -> float:
  """Returns the median seconds of turns, which warm up by themselves."""
  began, seconds = time.monotonic(), []
  while len(seconds) < _CALLS and time.monotonic() - began < _MAX_SECONDS:
    seconds.append(turn())
  return float(np.median(seconds))


def attention_rows(dry_run: bool) -> list[Figures]:
  """Measures attention and its gradient: cuDNN's beside the plain formula.

  'error' is the largest difference of the output and the gradient from the
  formula in float32, over the largest of its values.
  """
  device = jax.devices()[0]
  mesh = make_mesh(devices=[device])
  on_gpu = kernel_of(device) is gpu_attention
  implementation = 'cudnn' if on_gpu else 'xla'
  rows = []
  for length, heads, causal in _ATTENTION[: 2 if dry_run else None]:
    mask = np.tri(length, dtype=bool) if causal else None
    shape = (2 if dry_run else 512, length, 3, 64 * heads)
    qkv = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)

    def plain(qkv, heads=heads, mask=mask) -> jax.Array:
      q, k, v = split_heads(qkv, heads)
      return dot_product_attention(q, k, v, mask)

    def kernel(qkv, heads=heads, mask=mask) -> jax.Array:
      out = gpu_attention(mesh, qkv, mask, heads, implementation)
      assert out is not None
      return out

    row: Figures = {'tokens': length, 'heads': heads, 'causal': causal}
    row['implementation'] = implementation
    for name, attend in (('seconds', kernel), ('formula_seconds', plain)):
      call = _with_gradient(attend)
      row[name] = median_seconds(
        lambda call=call, qkv=qkv: jax.block_until_ready(call(qkv)), _CALLS
      )
    few = qkv[:2]
    with jax.default_matmul_precision('highest'):  # a GPU's own is TF32
      exact = _with_gradient(plain)(few.astype(jnp.float32))
    actual = _with_gradient(kernel)(few)
    row['error'] = max(
      float(jnp.abs(a - e).max() / jnp.abs(e).max())
      for a, e in zip(actual, exact, strict=True)
    )
    rows.append(row)
  return rows


def _with_gradient(attend: Callable[[Any], jax.Array]) -> Callable[[Any], Any]:
  """Returns a jitted function to the output, and a gradient of it."""

  def call(qkv):
    out, back = jax.vjp(attend, qkv)
    return out, back(out)[0]

  return jax.jit(call)


def loss_rows(dry_run: bool) -> list[Figures]:
  """Measures the forms of the loss at the paper's batch."""
  batch, width = (64, 16) if dry_run else (32_768, 768)
  kept = ('form', 'batch', 'embed_dim', 'seconds', 'peak_bytes')
  return [
    {name: row[name] for name in kept}
    for row in loss.bench_loss('softmax', batch, width, None, 5)
  ]


def encode_rows(dry_run: bool, python: str | None) -> list[Figures]:
  """Measures image encoders on pixels that are on the device.

  Args:
    python: of open_clip; '' leaves it out.
  """
  rows = []
  for preset in ('ViT-B/32', 'ViT-L/14'):
    for batch in (2,) if dry_run else (32, 512):
      row: Figures = {'preset': preset, 'batch': batch}
      row['images_per_second'] = batch / _encode_seconds(preset, batch, dry_run)
      if python != '':
        row |= _encode_beside(row['images_per_second'], preset, batch, python)
      rows.append(row)
  return rows


def _encode_beside(
  rate: float, preset: str, batch: int, python: str | None
) -> Figures:
  """Returns open_clip's rate, and ours over it, or why there is none."""
  try:
    with peer.open_clip(preset, _DTYPE, python) as theirs:
      seconds = median_seconds_of(lambda: theirs('image', batch))
  except (FailureError, peer.OutOfMemoryError) as error:
    return {'open_clip_failed': str(error).splitlines()[0][:80]}
  return {
    'open_clip_images_per_second': batch / seconds,
    'ratio': seconds * rate / batch,
  }


def _encode_seconds(preset: str, batch: int, dry_run: bool) -> float:
  model = _model(preset, dry_run)
  size, length = model.image.image_size, model.text.context_length
  mesh = make_mesh(devices=jax.devices()[:1])
  preprocessing = presets.preprocessing_of(preset)
  encode = make_encoders(
    model, _DTYPE, preprocessing.mean, preprocessing.std, mesh, False
  ).encode_image
  variables = jax.jit(DualEncoder(model).init)(
    jax.random.key(0),
    jnp.zeros((1, size, size, 3)),
    jnp.zeros((1, length), jnp.int32),
  )
  pixels = jax.random.bits(jax.random.key(0), (batch, size, size, 3), jnp.uint8)
  return median_seconds(
    lambda: jax.block_until_ready(encode(variables, pixels)), 2 * _CALLS
  )


def _model(preset: str, dry_run: bool) -> CLIPConfig:
  """Returns a published model's shape, or for a dry run a tiny one."""
  model = presets.resolve(preset)
  if not dry_run:
    return model
  few: dict[str, Any] = {'width': 64, 'depth': 2, 'heads': 1}
  image = dataclasses.replace(model.image, image_size=32, patch_size=16, **few)
  text = dataclasses.replace(
    model.text, vocab_size=64, end_token=63, context_length=8, **few
  )
  return dataclasses.replace(model, embed_dim=16, image=image, text=text)


def measure(part: Part, options: argparse.Namespace) -> list[Figures]:
  """Measures a part, in this process."""
  dry_run, python = options.dry_run, options.against_python
  if part.library == 'open_clip':
    return open_clip_rows(part.preset, options.batch, python)
  if part.kind == 'train':
    return train_rows(part.preset, dry_run)
  if part.kind == 'encode':
    return encode_rows(dry_run, python if _has_open_clip(options) else '')
  return {'attention': attention_rows, 'loss': loss_rows}[part.kind](dry_run)


def _has_open_clip(options: argparse.Namespace) -> bool:
  if options.dry_run:
    return False
  here = importlib.util.find_spec('open_clip') is not None
  return bool(options.against_python) or here


def measure_all(options: argparse.Namespace) -> Figures:
  """Measures all parts, each in a process with its share of the time left.

  Returns:
    'rows' of each kind, and 'left_out': the name of a part, and the reason.
  """
  began = time.monotonic()
  parts = [
    p for p in PARTS if p.library == 'clip_jax' or _has_open_clip(options)
  ]
  left_out = {
    p.name: 'no open_clip (--against_python)' for p in PARTS if p not in parts
  }
  rows: dict[str, list[Figures]] = {}
  for i, part in enumerate(parts):
    left = 60 * options.minutes - (time.monotonic() - began)
    limit = left * part.share / sum(p.share for p in parts[i:])
    batch = _batch_of(part.preset, rows.get('train', []))
    print(f'{part.name}: at most {limit:.0f} s', file=sys.stderr)
    try:
      found = _in_child(part, options, batch, limit)
    except FailureError as error:
      left_out[part.name] = str(error)
      continue
    rows.setdefault(part.kind, []).extend(found)
  _compare(rows.get('train', []), options.dry_run)
  return {
    'dry_run': options.dry_run,
    'seconds': time.monotonic() - began,
    'rows': rows,
    'left_out': left_out,
  }


def _batch_of(preset: str, rows: Sequence[Figures]) -> int:
  """Returns our batch of a model, or where it is not known, the first."""
  known = [row['batch'] for row in rows if row['preset'] == preset]
  return known[0] if known else _FIRST_BATCH


def _in_child(
  part: Part, options: argparse.Namespace, batch: int, limit: float
) -> list[Figures]:
  """Measures a part in a process that ends in time.

  Raises:
    FailureError: it did not, or the part failed.
  """
  arguments = [f'--part={part.name}', f'--batch={batch}']
  if options.dry_run:
    arguments.append('--dry_run')
  if options.against_python:
    arguments.append(f'--against_python={options.against_python}')
  memory = {'XLA_CLIENT_MEM_FRACTION': _TAKEN}
  if part.kind == 'encode':  # beside another library, in the same memory
    memory = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  process = subprocess.Popen(
    [sys.executable, '-m', 'clip_jax.benchmarks.gpu', *arguments],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, **memory},
    start_new_session=True,  # to be ended with what it starts
  )
  try:
    out, _ = process.communicate(timeout=limit)
  except subprocess.TimeoutExpired:
    raise FailureError(f'it took more than {limit:.0f} s') from None
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
  lines = out.splitlines()
  if process.returncode or not lines:
    raise FailureError(f'it ended with code {process.returncode}')
  answer = json.loads(lines[-1])
  if 'error' in answer:
    raise FailureError(answer['error'])
  return answer['rows']


def _compare(rows: Sequence[Figures], dry_run: bool) -> None:
  """Adds to each row its MFU, and to ours its ratio to theirs.

  A dry run's models are not those of its presets, and have no MFU.
  """
  ours = {row['preset']: row for row in rows if row['library'] == 'clip_jax'}
  for row in rows:
    mine = ours.get(row['preset'])
    if mine is None:
      continue
    model, rate = presets.resolve(row['preset']), row['pairs_per_second']
    if not dry_run:
      row['mfu'] = model_flops_utilization(model, rate, mine['device_kind'], 1)
    if row is not mine:
      mine['ratio'] = mine['pairs_per_second'] / rate


def report(document: Figures) -> str:
  """Returns tables of all rows, and what was left out."""
  lines = []
  for kind, rows in document['rows'].items():
    lines += [kind, *_table(rows), '']
  lines += [f'left out: {n}: {why}' for n, why in document['left_out'].items()]
  return '\n'.join([*lines, f'{document["seconds"]:.0f} s in all'])


def _table(rows: Sequence[Figures]) -> list[str]:
  names = list(dict.fromkeys(name for row in rows for name in row))
  cells = [names] + [[_short(row.get(name)) for name in names] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    '  '.join(map(str.rjust, row, widths)).rstrip() for row in cells
  ]  # fmt: skip


def _short(value: Any) -> str:
  if value is None:
    return '-'
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
  about = str(__doc__).partition('\n')[0]
  parser = argparse.ArgumentParser('clip_jax.benchmarks.gpu', description=about)
  add = parser.add_argument
  add('--minutes', type=float, default=12.0, help='of the whole run')
  add('--against_python', help='the Python that has open_clip, if not this one')
  add('--json', action='store_true', help='prints a document, not tables')
  add('--out', help='also writes the document to this file')
  add('--dry_run', action='store_true', help='tiny shapes, on any machine')
  add('--part', choices=[p.name for p in PARTS], help=argparse.SUPPRESS)
  add('--batch', type=int, default=_FIRST_BATCH, help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


def _answer_part(options: argparse.Namespace) -> None:
  """Prints the rows of one part, or why there are none."""
  [part] = [p for p in PARTS if p.name == options.part]
  try:
    answer: Figures = {'rows': measure(part, options)}
  except (FailureError, jax.errors.JaxRuntimeError) as error:
    answer = {'error': str(error).splitlines()[0][:300]}
  print(json.dumps(answer), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
  """Measures, prints and writes; returns the exit code."""
  options = _flags(arguments)
  if options.part:
    _answer_part(options)
    return 0
  try:
    path = files.typed_path(options.out) if options.out else None
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
      raise UsageError(f'--out={path}: name a file in a folder that is there.')
    document = measure_all(options)
    content = json.dumps(document, indent=2)
    if path is not None:
      files.write_bytes(path, content.encode() + b'\n')
  except UsageError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(content if options.json else report(document))
  return 0 if document['rows'] else 1


if __name__ == '__main__':
  sys.exit(main())
