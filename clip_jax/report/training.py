"""WORKDIR/report.html: one self-contained page about a run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from clip_jax.data.sources import Source, same_data, split_mixture
from clip_jax.evaluation import Encoder, Evaluation
from clip_jax.evaluation.metrics.ranking import FEW_CLASSES
from clip_jax.files import check_fields, read_object
from clip_jax.parallel.distributed import is_first_process
from clip_jax.report import facts, gallery, page
from clip_jax.report.curves import draw_curves
from clip_jax.report.examples import NO_EXAMPLES, draw_examples
from clip_jax.training.metrics import read_metrics
from clip_jax.training.workdir import REPORT


def write_report(
  workdir: str | os.PathLike,
  model: Encoder,
  source: Source | None,
  *,
  evaluation: Evaluation | None = None,
  templates: Sequence[str] = ('{}',),
  queries: Sequence[str] = (),
  command: str | None = None,
  examples: int = 1000,
  seed: int = 0,
  shown_as: str | None = None,
) -> Path:
  """Writes the page, atomically, from WORKDIR/metrics.jsonl and config.json.

  Every held-out image is encoded once, and so is every name, unless an
  evaluation is given. With several hosts each one has to call this, since
  they encode together; process 0 writes.

  Args:
    workdir: the run directory.
    model: `clip_jax.Model`, or anything with its encode functions.
    source: held-out examples. Without labels, captions take the place of
      names; with None, sections that need examples say that there are none.
    evaluation: the model's zero-shot evaluation on this source, if at hand.
    templates: prompts with a slot '{}' for a label's name.
    queries: texts to search the images for; by default captions of images
      that are unlike each other.
    command: how the run was started, to be shown.
    examples: how many are drawn from the source where it has more.
    seed: draws which examples are shown.
    shown_as: what the page calls the workdir; by default, its path.
  Returns:
    The path of the page.
  Raises:
    FailureError: the page cannot be written, or config.json is damaged.
  """
  workdir = Path(workdir)
  rows = read_metrics(workdir)
  config = _read_config(workdir)
  shown = NO_EXAMPLES
  if source is not None:
    shown = draw_examples(
      model,
      source,
      evaluation=evaluation,
      templates=templates,
      limit=examples,
      seed=seed,
    )
  # Runs of before wrote top-5 of any number of classes.
  few = not shown.captioned and shown.choices <= FEW_CLASSES
  hidden = ('eval/zero_shot/top5',) if shown.choices and few else ()
  spec = '' if source is None else source.spec
  trained_on = facts.setting(config, 'data.train') or ''
  sections = {
    'title': workdir.resolve().name,
    'date': page.long_date(),
    'spec': spec,
    'trained_on': trained_on,
    'held_in': any(same_data(spec, one) for one in split_mixture(trained_on)),
    'total': 0 if source is None else len(source),
    'examples': shown,
    'summary': facts.summary(shown, rows[-1]['step'] if rows else 0),
    'headline': facts.headline(rows, config, _parameters(model), hidden),
    'compared': any('eval/train_loss/loss' in row for row in rows),
    'overfitting': facts.overfitting(rows),
    'charts': draw_curves(rows, config, hidden),
    'cards': gallery.cards(shown, seed),
    'matrix': gallery.similarity_matrix(model, shown, seed),
    'text_queries': gallery.text_queries(model, shown, queries, seed),
    'image_queries': gallery.image_queries(shown, seed),
    'confusions': gallery.confused_names(shown),
    'settings': facts.main_settings(config),
    'config': json.dumps(config, indent=2, ensure_ascii=False),
    'environment': page.environment().items(),
    'commands': facts.commands(
      shown_as or os.fspath(workdir),
      spec,
      command,
      shown.predictions is not None and not shown.captioned,
    ),
  }
  path = workdir / REPORT
  if is_first_process():
    page.write(path, 'training.html', **sections)
  return path


def _read_config(workdir: Path) -> dict[str, Any]:
  """Returns config.json, of which the page needs the fields of `data`."""
  path = workdir / 'config.json'
  config = check_fields(path, read_object(path), {}, {'data': dict})
  fields = {'batch_size': int, 'train': str}
  check_fields(f'{path}, data', config.get('data', {}), {}, fields)
  return config


def _parameters(model: Encoder) -> int | None:
  """Returns how many parameters a model has, where it shows them."""
  params = getattr(model, 'params', None)
  if params is None:
    return None
  return sum(leaf.size for leaf in jax.tree.leaves(params))
