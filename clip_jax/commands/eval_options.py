"""The flags of `clip-jax eval` that say how to measure."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from clip_jax.commands import common_flags
from clip_jax.errors import UsageError
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.evaluation import Options


def define_flags(values: flags.FlagValues) -> None:
  """Adds the flags of `Options`, which says more of each."""

  def text(name: str, default: str | None, what: str) -> None:
    flags.DEFINE_string(name, default, what, flag_values=values)

  def number(name: str, default: int, what: str, least: int | None) -> None:
    flags.DEFINE_integer(name, default, what, least, flag_values=values)

  def real(name: str, default: float | None, what: str) -> None:
    flags.DEFINE_float(name, default, what, flag_values=values)

  def switch(name: str, what: str) -> None:
    flags.DEFINE_bool(name, False, what, flag_values=values)

  common_flags.define_templates(values, default=None)
  number('seed', 0, 'of what is drawn', 0)
  number('seeds', 3, 'few_shot: draws', 1)
  flags.DEFINE_list(
    'shots',
    ['1', '2', '4', '8', '16'],
    'few_shot: examples a class',
    flag_values=values,
  )
  real('C', None, 'probes: inverse regularisation, not swept')
  number('probe_iterations', 1000, 'probes: steps at most', 1)
  switch('joint_space', 'probes: on features of the joint space, not before it')
  switch('start_from_text', "probes: start from the text tower's weights")
  common_flags.define_path(
    values, 'baselines', 'robustness: a CSV file of standard models'
  )
  text('overlap_with', '', 'overlap: a SPEC of what the model was trained on')
  text('detector', 'perceptual', 'overlap: perceptual or learned')
  number('max_distance', 8, 'overlap: bits between hashes', None)
  real('min_similarity', 0.95, 'overlap: cosine of features')
  common_flags.define_path(
    values, 'designs', 'bias: a JSON file of sets of names'
  )


def options_of(values: flags.FlagValues) -> 'Options':
  """Returns what these flags and those of encoding say; without a cache.

  Raises:
    UsageError: one of them is impossible.
  """
  from clip_jax.evaluation.types import (
    BiasOptions,
    FewShotOptions,
    Options,
    OverlapOptions,
    ProbeOptions,
    RobustnessOptions,
  )

  if values.C is not None and not 0 < values.C < math.inf:
    raise UsageError(f'--C={values.C}: use a positive number, as 1.0.')
  baselines = values.baselines
  if baselines:
    from clip_jax.evaluation.shift.effective_robustness import read_baselines

    read_baselines(baselines)  # what is wrong in it is said at once
  designs = None
  if values.designs:
    from clip_jax.evaluation.tasks.bias_designs import read_designs

    designs = read_designs(Path(values.designs))
  return Options(
    templates=tuple(common_flags.templates_of(values))
    if values.templates
    else None,
    max_corrupt_records=values.max_corrupt,
    progress=show_progress,
    seed=values.seed,
    few_shot=FewShotOptions(
      examples_per_class=_numbers_of_examples(values.shots), seeds=values.seeds
    ),
    probe=ProbeOptions(
      C=values.C,
      max_iterations=values.probe_iterations,
      joint_space=values.joint_space,
      start_from_text=values.start_from_text,
    ),
    robustness=RobustnessOptions(baselines=baselines),
    overlap=OverlapOptions(
      train=values.overlap_with,
      detector=values.detector,
      max_distance=values.max_distance,
      min_similarity=values.min_similarity,
    ),
    bias=BiasOptions(designs=designs),
  )


def _numbers_of_examples(words: list[str]) -> tuple[int, ...]:
  numbers = [word.strip() for word in words]
  if not numbers or not all(x.isdecimal() and int(x) for x in numbers):
    raise UsageError(
      f'--shots={",".join(words)}: use numbers of examples, as in 1,2,4.'
    )
  return tuple(sorted({int(x) for x in numbers}))
