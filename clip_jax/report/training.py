"""WORKDIR/report.html: one self-contained page about a run (DESIGN 3.4)."""

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2

from clip_jax.data.sources import Source, same_data
from clip_jax.data.thumbnails import data_uri
from clip_jax.evaluation import Encoder, Evaluation
from clip_jax.evaluation.metrics.chance import FEW_CLASSES
from clip_jax.files import check_fields, read_object
from clip_jax.report import facts
from clip_jax.report.curves import draw_charts
from clip_jax.report.examples import (
  Examples,
  confusions,
  no_examples,
  read_examples,
  some_right_some_wrong,
)
from clip_jax.report.machine import machine
from clip_jax.report.page import environment
from clip_jax.report.similarity import (
  changed_words,
  nearest,
  says,
  spread,
)
from clip_jax.report.words import percent, small_units
from clip_jax.training.metrics import read_metrics

FILE = 'report.html'

CARDS = 12
MATRIX = 8
TEXT_QUERIES, PICTURE_QUERIES, NEAREST = 4, 2, 8
CONFUSIONS = 10


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

  Every held-out picture is encoded once, and so is every name, unless an
  evaluation is given. With several hosts each one has to call this, since
  they encode together; process 0 writes.

  Args:
    model: `clip_jax.Model`, or what has its encode functions.
    source: held-out examples. Without labels, captions take the place of
      names; None leaves out all that needs examples.
    evaluation: the model's zero-shot evaluation on this source, if at hand.
    templates: prompts with a slot '{}' for a label's name.
    queries: texts to look for among the pictures; captions of pictures that
      are unlike each other, unless given.
    command: how the run was started, to be shown.
    examples: drawn from the source where it has more.
    seed: draws which examples are shown.
    shown_as: what the page calls the workdir; unless given, its path.
  Returns:
    The path of the page.
  """
  workdir = Path(workdir)
  rows = read_metrics(workdir)
  config = _read_config(workdir)
  found = no_examples()
  if source is not None:
    found = read_examples(
      model,
      source,
      evaluation=evaluation,
      templates=templates,
      most=examples,
      seed=seed,
    )
  # Runs of before wrote it of any number of classes.
  few = not found.captioned and found.choices <= FEW_CLASSES
  hidden = ('eval/zero_shot/top5',) if found.choices and few else ()
  spec = '' if source is None else source.spec
  trained_on = facts.setting(config, 'data.train') or ''
  step = rows[-1]['step'] if rows else 0
  page = _template().render(
    title=workdir.resolve().name,
    date=datetime.date.today().strftime('%-d %B %Y'),
    spec=spec,
    trained_on=trained_on,
    held_in=any(same_data(spec, one) for one in trained_on.split('::')),
    total=0 if source is None else len(source),
    examples=found,
    summary=facts.summary(found, step),
    headline=facts.headline(rows, config, _parameters(model), hidden),
    compared=any('eval/train_loss/loss' in row for row in rows),
    overfitting=facts.overfitting(rows),
    charts=draw_charts(rows, config, hidden),
    cards=_cards(found, seed),
    matrix=_matrix(model, found, seed),
    text_queries=_text_queries(model, found, queries, seed),
    picture_queries=_picture_queries(found, seed),
    confusions=_confusions(found),
    settings=facts.main_settings(config),
    config=json.dumps(config, indent=2, ensure_ascii=False),
    environment=machine(),
    commands=facts.commands(
      shown_as or os.fspath(workdir),
      spec,
      command,
      found.predictions is not None and not found.captioned,
    ),
  )
  path = workdir / FILE
  if jax.process_index():
    return path
  partial = path.with_name(f'{FILE}.partial')
  partial.write_text(page, encoding='utf-8')
  partial.replace(path)
  return path


def _template() -> jinja2.Template:
  pages = environment()
  pages.filters['percent'] = percent
  pages.filters['small_units'] = small_units
  pages.filters['cosine'] = _cosine
  return pages.get_template('training.html')


def _cosine(value: float) -> str:
  """Two decimals, and a minus sign as long as a plus."""
  return f'{round(value, 2) + 0.0:.2f}'.replace('-', '\N{MINUS SIGN}')


def _read_config(workdir: Path) -> dict[str, Any]:
  path = workdir / 'config.json'
  config = check_fields(path, read_object(path), {}, {'data': dict})
  fields = {'batch_size': int, 'train': str}
  check_fields(f'{path}, data', config.get('data', {}), {}, fields)
  return config


def _parameters(model: Encoder) -> int | None:
  params = getattr(model, 'params', None)
  if params is None:
    return None
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _cards(examples: Examples, seed: int) -> list[dict[str, Any]]:
  """Pictures with the first five names and their probabilities."""
  predictions = examples.predictions or []
  return [
    {
      'picture': data_uri(examples.images[i]),
      'name': predictions[i].right,
      'right': predictions[i].answers,
      'rank': predictions[i].rank,
      'answers': predictions[i].top,
    }
    for i in some_right_some_wrong(predictions, CARDS, seed)
  ]


def _unlike(examples: Examples, count: int, seed: int) -> list[int]:
  """Examples unlike each other, no two with the same text."""
  chosen: dict[str, int] = {}
  for i in spread(examples.features, 4 * count, seed):
    if examples.texts[i]:
      chosen.setdefault(examples.texts[i], i)
  return list(chosen.values())[:count]


def _matrix(
  model: Encoder, examples: Examples, seed: int
) -> dict[str, Any] | None:
  """Texts as rows, pictures as columns, cosine similarities."""
  chosen, texts = [], []
  for i in _unlike(examples, MATRIX, seed):
    chosen.append(i)
    texts.append(examples.texts[i])
  if len(chosen) < 2:
    return None
  cosine = model.encode_text(texts) @ examples.features[chosen].T
  low, high = float(cosine.min()), float(cosine.max())
  # The power keeps the many low similarities pale.
  share = ((cosine - low) / max(high - low, 1e-9)) ** 1.4
  return {
    'pictures': [
      (data_uri(examples.images[i]), text)
      for i, text in zip(chosen, texts, strict=True)
    ],
    'rows': [
      (text, list(zip(values.tolist(), shares.tolist(), strict=True)))
      for text, values, shares in zip(texts, cosine, share, strict=True)
    ],
    'best_of_row': int((cosine.argmax(1) == range(len(texts))).sum()),
    'best_of_column': int((cosine.argmax(0) == range(len(texts))).sum()),
  }


def _text_queries(
  model: Encoder, examples: Examples, queries: Sequence[str], seed: int
) -> list[dict[str, Any]]:
  queries = list(queries) or [
    examples.texts[i] for i in _unlike(examples, TEXT_QUERIES, seed + 2)
  ]
  if not queries or not len(examples):
    return []
  return [
    {
      'text': query,
      'found': [
        (
          data_uri(examples.images[i]),
          examples.texts[i],
          similarity,
          says(examples.texts[i], query),
        )
        for i, similarity in nearest(examples.features, feature, NEAREST)
      ],
    }
    for query, feature in zip(queries, model.encode_text(queries), strict=True)
  ]


def _picture_queries(examples: Examples, seed: int) -> list[dict[str, Any]]:
  return [
    {
      'picture': data_uri(examples.images[i]),
      'text': examples.texts[i],
      'found': [
        (data_uri(examples.images[j]), examples.texts[j], similarity)
        for j, similarity in nearest(
          examples.features, examples.features[i], NEAREST, without=[i]
        )
      ],
    }
    for i in spread(examples.features, PICTURE_QUERIES, seed + 1)
    if len(examples) > 1
  ]


def _confusions(examples: Examples) -> list[dict[str, Any]]:
  predictions = examples.predictions or []
  pictured: dict[str, int] = {}
  for i, prediction in enumerate(predictions):
    for answer in prediction.answers:
      pictured.setdefault(answer, i)
  return [
    {
      'picture': data_uri(examples.images[c.example]),
      'right': changed_words(c.right, c.given),
      'given': changed_words(c.given, c.right),
      'other': data_uri(examples.images[pictured[c.given]])
      if c.given in pictured
      else None,
      'times': c.times,
      'probability': c.probability,
    }
    for c in confusions(predictions, CONFUSIONS)
  ]
