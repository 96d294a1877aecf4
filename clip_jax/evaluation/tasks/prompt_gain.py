"""The gain of prompts over bare class names (section 3.1.4, figure 4)."""

from collections.abc import Sequence
from typing import Any

from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import examples_of
from clip_jax.evaluation.features.concurrency import encode_concurrently
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.metrics.ranking import (
  chance_levels,
  scaled,
  scores_of,
)
from clip_jax.evaluation.prompts import (
  class_directions,
  prompt_features,
  prompt_warnings,
)
from clip_jax.evaluation.tasks.zero_shot import own_metric
from clip_jax.evaluation.types import Encoder, Evaluation, Options
from clip_jax.inference.classifier import PLAIN, check_templates

PHOTO = 'a photo of a {}.'  # the paper's prompt for any data set
SINGLE_TEMPLATES = 100  # that are also evaluated one by one


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Measures zero-shot with bare names, a common prompt, and the set's own.

  By the data set's metric: a fraction, whichever it is.

  Args:
    options: `templates`, instead of the data set's; `cache`,
      `max_corrupt_records`, `progress`.
  Returns:
    metrics: 'bare', 'photo' ('a photo of a {}.') and 'ensemble' (all templates,
      averaged in embedding space), and 'photo_gain' and 'ensemble_gain' over
      the bare names (differences of fractions: 0.05 are 5 points);
      'templates' and 'examples', counts.
    tables: 'prompts': 'prompt' (the template; 'ensemble' of all), 'value' and
      'gain', for each of the first hundred templates by itself. 'warnings':
      see `Evaluation`.
  Raises:
    UsageError, FailureError: see `zero_shot.evaluate`.
  """
  dataset.require_classes('prompt_gain')
  templates = options.templates_for(dataset)
  check_templates(templates)
  prompts = list(dict.fromkeys([*PLAIN, PHOTO, *templates]))
  rows, features = encode_concurrently(
    options,
    lambda options: prompt_features(encoder, dataset, options, prompts),
    lambda options: read_features(encoder, dataset.test.source, options),
  )
  examples = examples_of(features, dataset.test, dataset, 'prompt_gain')

  def measure(chosen: Sequence[str]) -> float:
    picked = rows[:, [prompts.index(template) for template in chosen]]
    weights = scaled(class_directions(dataset, picked), encoder.logit_scale)
    scores = scores_of(examples.features.embeddings, weights)
    return own_metric(dataset, scores, examples.answers, examples.difficult)

  bare, photo, ensemble = (
    measure(PLAIN), measure([PHOTO]), measure(templates)
  )  # fmt: skip
  table: list[dict[str, Any]] = [
    {'prompt': template, 'value': value, 'gain': value - bare}
    for template in prompts[: SINGLE_TEMPLATES + 2]
    for value in [measure([template])]
  ]
  table.append(
    {'prompt': 'ensemble', 'value': ensemble, 'gain': ensemble - bare}
  )
  return Evaluation(
    metrics={
      'bare': bare,
      'photo': photo,
      'ensemble': ensemble,
      'photo_gain': photo - bare,
      'ensemble_gain': ensemble - bare,
      'templates': float(len(templates)),
      'examples': float(len(examples)),
    },
    chance=chance_levels(
      ('bare', 'photo', 'ensemble'), examples.classes, dataset.metric
    ),
    records=[],
    corrupt=examples.corrupt,
    tables={
      'prompts': table,
      'warnings': _warnings(encoder, dataset, options, templates),
    },
  )


def _warnings(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: tuple[str, ...],
) -> list[dict[str, str]]:
  """Returns the warnings of all three kinds of prompt, each once."""
  lines = dict.fromkeys(
    row['warning']
    for chosen in dict.fromkeys((templates, (PHOTO,), PLAIN))
    for row in prompt_warnings(encoder, dataset, options, chosen)
  )
  return [{'warning': line} for line in lines]
