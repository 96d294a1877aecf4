"""Holds the estimates of `planning/` against published speeds of TPUs.

  python -m clip_jax.benchmarks.roofline

compiles published runs from their shapes, estimates a step both ways, and
prints a table in Markdown: that of planning/README.md. It needs libtpu and no
TPU, is called where configs/ is, and takes some minutes.

MaxText's shapes are in MaxText/configs/base.yml and in the scripts v5e/16b.sh,
32b.sh and 64b.sh and v5p/32b.sh beside it, of
github.com/AI-Hypercomputer/maxtext; its speeds are in the README.md of those
folders. SigLIP B/16 is that of section 4.5 of arXiv 2303.15343.
"""

import dataclasses
import importlib
import os

import jax

from clip_jax.benchmarks.language_model import (
  LanguageModel,
  compiled,
  kernel_operations,
  model_flops,
)
from clip_jax.planning import hlo
from clip_jax.planning.child import ENVIRONMENT, UNSET, check_libtpu
from clip_jax.planning.collectives import collectives
from clip_jax.planning.costs import operations
from clip_jax.planning.estimate import Estimate, estimate
from clip_jax.planning.plan import make_plan
from clip_jax.planning.topology import parse_topology

MAXTEXT = {
  'MaxText 16B': LanguageModel('v5e:16x16', 0.6110, 4096, 28_672, 32, 64, 6),
  'MaxText 32B': LanguageModel('v5e:16x16', 0.6686, 8192, 28_672, 32, 64, 4),
  'MaxText 64B': LanguageModel('v5e:16x16', 0.5990, 8192, 28_672, 64, 64, 2),
  # Published with 7 sequences a chip, which do not fit as we compile it.
  'MaxText 32B, 4 chips a block': LanguageModel(
    'v5p:4x4x4', 0.7147, 8192, 28_672, 32, 64, 6, 'minimal', 4
  ),
}

# SigLIP B/16 with 16 text tokens on 16 chips of v4.
_PAIRS = 2_400_000_000  # in three days
_PAIRS_A_STEP = 16_384
_DAYS = 3


def estimated(model: LanguageModel) -> Estimate:
  """Compiles a step and estimates its time."""
  topology = parse_topology(model.topology)
  text, mesh = compiled(model)
  module = hlo.parse(text)
  done = [*operations(module), *kernel_operations(model, module)]
  devices = list(mesh.devices.flat)
  return estimate(done, collectives(module, len(devices)), topology, devices)


@dataclasses.dataclass(frozen=True)
class Row:
  """A published run beside the estimates of it.

  Attributes:
    mfu: a fraction, published or derived from the published seconds.
    seconds: of a step, published.
    flat, by_shape: estimated seconds of a step.
  """

  name: str
  topology: str
  mfu: float
  seconds: float
  flat: float
  by_shape: float

  def __str__(self) -> str:
    flat, by_shape = self.flat / self.seconds, self.by_shape / self.seconds
    return (
      f'| {self.name} | {self.topology} | {self.mfu:.1%} | '
      f'{self.seconds:.2f} s | {self.flat:.2f} s | {flat:.2f} | '
      f'{self.by_shape:.2f} s | {by_shape:.2f} |'
    )


HEAD = (
  '| run | topology | MFU, published or derived | step, published | flat '
  '| ratio | by shape | ratio |\n'
  '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |'
)


def maxtext(name: str) -> Row:
  """Returns the row of one of `MAXTEXT`."""
  model = MAXTEXT[name]
  peak = parse_topology(model.topology).chip.peak_flops
  seconds = model_flops(model) / (model.mfu * peak)
  result = estimated(model)
  return Row(
    name,
    model.topology,
    model.mfu,
    seconds,
    result.step_seconds,
    result.step_seconds_by_shape,
  )


def siglip() -> Row:
  """Returns the row of SigLIP B/16, planned with what its paper says.

  It does not say what is computed again in the backward pass: all, here.
  """
  config = importlib.import_module('configs.siglip_b16').get_config()
  config.data.batch_size = _PAIRS_A_STEP
  config.model.text.context_length = 16
  config.model.remat = 'full'
  plan = make_plan(config, parse_topology('v4:2x2x4'))
  seconds = _DAYS * 86_400 * _PAIRS_A_STEP / _PAIRS
  flat = plan['step_seconds']
  return Row(
    'SigLIP B/16',
    plan['topology'],
    plan['mfu'] * flat / seconds,
    seconds,
    flat,
    plan['step_seconds_by_shape'],
  )


def main() -> None:
  """Prints the table, row by row."""
  check_libtpu()
  jax.config.update('jax_platforms', 'cpu')
  for name in UNSET:
    os.environ.pop(name, None)
  os.environ.update(ENVIRONMENT)  # libtpu reads it when it is loaded
  print(HEAD, flush=True)
  for name in MAXTEXT:
    print(maxtext(name), flush=True)
  print(siglip(), flush=True)


if __name__ == '__main__':
  main()
