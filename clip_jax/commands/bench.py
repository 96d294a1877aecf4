"""Measures this machine.

usage:
  clip-jax bench train|encode|loss|input|index|tokenizer|checkpoint|curate
      [--flag=value …]

examples:
  clip-jax bench train --preset=ViT-B/32 --batch=16
  clip-jax bench train --preset=ViT-B/32 --against=open_clip --json
  clip-jax bench train --scaling --json
  clip-jax bench encode --preset=ViT-B/16 --batch=1 --batch=32
  clip-jax bench encode --preset=ViT-B/32 --against=open_clip --json
  clip-jax bench encode --preset=ViT-B/32 --batch=64 --data=digits
  clip-jax bench loss --batch=4096 --embed-dim=512 --cpu-devices=2
  clip-jax bench loss --objective=sigmoid --batch=4096 --chunk=512 --json
  clip-jax bench input --against=open_clip
  clip-jax bench input --data=folder:images --image_size=224
  clip-jax bench index --records=200_000_000 --json
  clip-jax bench tokenizer --tokenizer=clip --json
  clip-jax bench tokenizer --tokenizer=clip --data=tfds:emoji
  clip-jax bench checkpoint --preset=ViT-B/32 --steps=5 --json
  clip-jax bench curate --texts=1000000 --queries=500000 --workers=2

What is measured:
  train      whole train steps on real records, the fraction of the time that
             they waited for input, and on a CPU their share of the rate of a
             plain product; with --against, also steps alone; with --scaling,
             steps of 1, 2, 4 and 8 devices that the CPU stands for and of 2
             processes, --batch pairs on each: what part of their time goes to
             collectives, by a trace, and what these exchange
  encode     both encoders at inference, with random weights, on a CPU also as
             a share of the rate of a plain product; with --data the images of a
             data set (a NAME of eval --list, or a SPEC), encoded alone and in
             turns classified among its class names
  loss       value and gradient of each form of the contrastive loss, with the
             scratch memory of the compiled program on one device
  input      records to batches on the host, without a model, of the records
             of --data, or of JPEGs of 500 x 375 that are made up; with
             --against on one core, in turns with that library's transform
  index      tar shards of a made-up number of records: seconds to open them, to
             find the records of a random batch, and to make it; memory
  tokenizer  captions to token ids; without --data on plain ones, made up
             from 30,000 words as often as Zipf's law has them
  checkpoint how long a save stalls a run, against a save that it waits for
  curate     data curate over made-up texts, and over twice as many: seconds,
             and the memory of all its processes
"""

import itertools
import json
from typing import Any

from absl import flags

from clip_jax.commands import common_flags
from clip_jax.errors import UsageError

_DATA = 'tfds:emoji#train'
_BATCH = {'input': 64, 'index': 1024}
_PEER = ('against', 'against_python')
# The flags that each kind reads, besides --json and --cpu_devices.
_FLAGS: dict[str, tuple[str, ...]] = {
  'train': (
    'preset', 'data', 'dtype', 'remat', 'scaling', 'batch', 'steps', *_PEER
  ),
  'encode': ('preset', 'data', 'dtype', 'batch', 'steps', *_PEER),
  'loss': ('objective', 'batch', 'embed_dim', 'chunk', 'steps'),
  'input': (
    'data', 'batch', 'steps', 'image_size', 'workers', 'decode', *_PEER
  ),
  'index': ('records', 'batch', 'steps'),
  'tokenizer': ('tokenizer', 'data', 'steps'),
  'checkpoint': ('preset', 'steps'),
  'curate': ('texts', 'queries', 'workers'),
}  # fmt: skip
KINDS = tuple(_FLAGS)
# Flags that cannot be combined with --scaling, which measures made-up pairs on
# 1, 2, 4 and 8 devices of the CPU.
_NOT_OF_SCALING = ('data', 'cpu_devices', *_PEER)


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text(
    'preset',
    'ViT-B/32',
    'train, encode, checkpoint: the model (with --scaling, by default a '
    'small one)',
    flag_values=values,
  )
  text(
    'data',
    '',
    f'train: records (a SPEC), where left out {_DATA}; see also above',
    flag_values=values,
  )
  text('dtype', 'float32', 'float32 or bfloat16', flag_values=values)
  text('remat', 'none', 'train: as model.remat of a config', flag_values=values)
  flags.DEFINE_bool(
    'scaling', False, 'train: on 1 to 8 fake devices', flag_values=values
  )
  text('tokenizer', 'clip', 'tokenizer: which', flag_values=values)
  flags.DEFINE_multi_integer(
    'batch',
    None,
    'pairs, all devices together (defaults: 16; input 64; index 1024); of '
    'encode one or more (1 and 32)',
    1,
    flag_values=values,
  )
  flags.DEFINE_enum(
    'against',
    None,
    ['open_clip'],
    'train, encode, input: take turns with this library',
    flag_values=values,
  )
  common_flags.define_path(
    values,
    'against_python',
    'the Python that has that library, if not this one',
  )
  number('steps', 10, 'steps or calls that are measured', 1, flag_values=values)
  text('objective', 'softmax', 'loss: softmax or sigmoid', flag_values=values)
  number('embed_dim', 512, 'loss: width of features', 1, flag_values=values)
  number(
    'chunk', None, 'loss: rows and columns of a tile', 1, flag_values=values
  )
  number('image_size', 224, 'input: pixels a side', 1, flag_values=values)
  number(
    'records', 200_000_000, 'index: made-up records', 1, flag_values=values
  )
  text('decode', 'fast', 'input: fast or exact', flag_values=values)
  number('workers', 0, 'input, curate: processes', 0, flag_values=values)
  number('texts', 1_000_000, 'curate: how many', 1, flag_values=values)
  number('queries', 500_000, 'curate: how many', 1, flag_values=values)
  number(
    'cpu_devices', 1, 'devices that a CPU stands for', 1, flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Measures, and prints the figures."""
  if len(words) != 1 or words[0] not in KINDS:
    asked = f'bench {words[0]!r}?' if len(words) == 1 else 'bench what?'
    raise UsageError(f'{asked} One of {", ".join(KINDS)}.')
  for name, known in (
    ('dtype', ('float32', 'bfloat16')),
    ('decode', ('fast', 'exact')),
  ):
    if values[name].value not in known:
      raise UsageError(
        f'--{name}={values[name].value}: choose one of {", ".join(known)}.'
      )
  _check_flags(words[0], values)

  from clip_jax.models.kernels import remat_policies
  from clip_jax.parallel.devices import keep_freed_memory, use_cpu_devices

  remat_policies(values.remat, 1, '--remat')

  if words[0] == 'train':
    keep_freed_memory()
  if values.scaling:  # of the CPU, also beside an accelerator
    import jax

    jax.config.update('jax_platforms', 'cpu')
  use_cpu_devices(8 if values.scaling else values.cpu_devices)
  figures = _measure(words[0], values)
  if values.json:
    print(json.dumps(figures, indent=2))
    return
  for row in figures if isinstance(figures, list) else [figures]:
    print('  '.join(f'{name}={_short(value)}' for name, value in row.items()))


def _check_flags(kind: str, values: flags.FlagValues) -> None:
  """Refuses flags that a kind of benchmark does not read."""
  for name in sorted(set(itertools.chain(*_FLAGS.values()))):
    if values[name].present and name not in _FLAGS[kind]:
      kinds = [other for other in KINDS if name in _FLAGS[other]]
      raise UsageError(
        f'--{name} is of bench {", ".join(kinds)}, not of bench {kind}.'
      )
  for name in _NOT_OF_SCALING if values.scaling else ():
    if values[name].present:
      raise UsageError(
        f'--scaling goes without --{name}: it measures made-up pairs on 1, 2, '
        '4 and 8 devices of the CPU.'
      )


def _measure(kind: str, values: flags.FlagValues) -> Any:
  v = values
  if kind == 'encode':
    from clip_jax.benchmarks.encode import bench_encode

    batches = v.batch or [1, 32]
    return bench_encode(
      v.preset, batches, v.steps, v.dtype, v.against, v.against_python, v.data
    )
  if kind == 'checkpoint':
    from clip_jax.benchmarks.checkpoint import bench_checkpoint

    return bench_checkpoint(v.preset, v.steps)
  if kind == 'curate':
    from clip_jax.benchmarks.curate import bench_curate

    return bench_curate(v.texts, v.queries, v.workers)
  batch = _one_batch(kind, v.batch or [_BATCH.get(kind, 16)])
  if kind == 'index':
    from clip_jax.benchmarks.index import bench_index

    return bench_index(v.records, batch, v.steps)
  if kind == 'train' and v.scaling:
    from clip_jax.benchmarks.scaling import bench_scaling

    preset = v.preset if v['preset'].present else None
    return bench_scaling(preset, batch, v.steps, v.dtype, v.remat)
  if kind == 'train':
    from clip_jax.benchmarks.train import bench_train

    data = v.data or _DATA
    arguments = (v.preset, batch, v.steps, data, v.dtype, v.remat)
    return bench_train(*arguments, v.against, v.against_python)
  if kind == 'loss':
    from clip_jax.benchmarks.loss import bench_loss

    return bench_loss(v.objective, batch, v.embed_dim, v.chunk, v.steps)
  from clip_jax.benchmarks import host

  if kind == 'input':
    arguments = (v.data, batch, v.steps, v.image_size, v.workers, v.decode)
    return host.bench_input(*arguments, v.against, v.against_python)
  return host.bench_tokenizer(v.tokenizer, v.data, v.steps)


def _one_batch(kind: str, batches: list[int]) -> int:
  if len(batches) > 1:
    raise UsageError(f'bench {kind} takes one --batch, not {len(batches)}.')
  return batches[0]


def _short(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)
