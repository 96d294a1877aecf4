"""Five data sets, evaluators that need no model, and what they would give."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.datasets.table import DatasetFacts
from clip_jax.evaluation.suite import Suite, SuiteCall
from clip_jax.evaluation.suite.run import Suite as _Suite
from clip_jax.evaluation.types import Evaluation, Options
from tests.evaluation.fakes import ListSource

CHANCE = 0.173
_OF_CHANCE = ('top1', 'bare', 'accuracy_all', 'image_to_text_r1')
TASKS = (
  'zero_shot',
  'prompt_gain',
  'linear_probe',
  'few_shot',
  'retrieval',
  'robustness',
  'overlap',
  'bias',
)


def _facts(name: str, title: str, group: Any, **fields: Any) -> DatasetFacts:
  place = f'folder:{{root}}/{name}'
  row = {
    'metric': 'accuracy',
    'train': f'{place}#train',
    'validation': None,
    'test': f'{place}#test',
    'sizes': (20, 10),
    **fields,
  }
  return DatasetFacts(name, title, group, **row)


TABLE = {
  facts.name: facts
  for facts in (
    _facts('food101', 'Food-101', 'paper'),
    _facts('oxford_pets', 'Pets <b>', 'paper', metric='mean_per_class'),
    _facts('mnist', 'MNIST', 'paper'),
    _facts(
      'imagenet_v2', 'ImageNetV2', 'shift', train=None, shift_of='food101'
    ),
    _facts('flickr30k', 'Flickr30k', 'retrieval', train=None, metric=None),
    _facts('fairface', 'FairFace', 'bias', metric=None),
  )
}
ABSENT = {'mnist': 'not prepared'}


def absence(facts: DatasetFacts, root: Path) -> str | None:
  """All are here but MNIST."""
  del root
  return ABSENT.get(facts.name)


def source(levels: Sequence[int] = (10, 20, 30, 40)) -> ListSource:
  """Four images of two classes."""
  return ListSource(levels, labels=[0, 0, 1, 1], names=['cat', 'dog'])


class FakeSuite:
  """A suite in a folder that counts what is opened and evaluated."""

  def __init__(
    self, folder: Path, fails: Mapping[str, BaseException] | None = None
  ):
    """`fails`: 'DATASET TASK', or the name of a data set, to what it raises."""
    self.calls: collections.Counter[str] = collections.Counter()
    self.opened: collections.Counter[str] = collections.Counter()
    self.said: list[str] = []
    self.fails = fails or {}
    self.options = Options()
    self.depends = {'model': {'weights': 'abc', 'dtype': 'float32'}}
    self.levels = [10, 20, 30, 40]  # of food101
    self.train: Split | None = None
    self.folder = folder

  @property
  def suite(self) -> Suite:
    """As `evaluate_suite` takes it."""
    return _Suite(
      encoder=_NoEncoder(),
      folder=self.folder,
      table=TABLE,
      find=self._find,
      open=self._open,
      options=self.options,
      depends=self.depends,
    )

  def say(self, place, total, pair, result, kept) -> None:
    """Remembers what ended, and how."""
    if result is not None:
      how = 'failed' if result.error else 'kept' if kept else 'done'
      self.said.append(f'{place + 1}/{total} {pair} {how}')

  def _open(self, name: str) -> Dataset:
    self.opened[name] += 1
    if name in self.fails:
      raise self.fails[name]
    levels = self.levels if name == 'food101' else (10, 20, 30, 40)
    return Dataset(
      name,
      Split(source(levels)),
      train=self.train,
      class_names=(('cat',), ('dog',)),
    )

  def _find(self, task: str):
    def evaluate(encoder, dataset: Dataset, options: Options) -> Evaluation:
      del encoder, options
      key = f'{dataset.name} {task}'
      self.calls[key] += 1
      if key in self.fails:
        raise self.fails[key]
      return evaluation(dataset.name, task)

    return evaluate


class _NoEncoder:
  logit_scale = 1.0

  def encode_image(self, images):
    raise AssertionError('nothing is encoded')

  def encode_text(self, texts):
    raise AssertionError('nothing is encoded')


SETTING = SuiteCall(
  model='runs/<model>',
  command='clip-jax eval --model=runs/model --suite=paper --out=DIR',
  published='ViT-B/32',
  root='/data',
  overlap_with='folder:seen',
)


def evaluation(name: str, task: str) -> Evaluation:
  """What the evaluator of a task gives, in its own words."""
  metrics, tables, records = _GIVEN[task]
  if task in ('zero_shot', 'linear_probe') and name == 'oxford_pets':
    metrics = {**metrics, 'mean_per_class': 0.7}
  return Evaluation(
    dict(metrics),
    list(records),
    tables=dict(tables),
    chance={x: CHANCE for x in metrics if x in _OF_CHANCE},
  )


def _curve() -> list[dict[str, Any]]:
  return [
    {
      'start': 'zeros', 'shots': k, 'mean': mean, 'low': mean - 0.1,
      'high': mean + 0.1, 'full': False,
    }
    for k, mean in ((1, 0.3), (2, 0.4), (4, 0.5), (8, 0.6), (16, 0.7))
  ]  # fmt: skip


_GIVEN: dict[str, tuple[dict[str, float], dict[str, Any], Any]] = {
  'zero_shot': (
    {
      'top1': 0.5, 'top1_low': 0.2, 'top1_high': 0.8, 'top5': 1.0,
      'ece': 0.125, 'examples': 10.0,
    },
    {
      'reliability': [
        {
          'low': 0.0, 'high': 0.5, 'count': 0, 'confidence': None,
          'accuracy': None,
        },
        {
          'low': 0.5, 'high': 1.0, 'count': 10, 'confidence': 0.7,
          'accuracy': 0.5,
        },
      ],
      'confusions': [
        {
          'right': 'cat', 'given': 'dog', 'times': 2, 'probability': 0.8,
          'examples': ['image/1'],
        }
      ],
    },
    [
      {'id': 'image/0', 'label': 'cat', 'rank': 0, 'top': [['cat', 0.9]]},
      {'id': 'image/2', 'label': 'dog', 'rank': 0, 'top': [['dog', 0.9]]},
    ],
  ),
  'prompt_gain': (
    {'bare': 0.45, 'ensemble': 0.5, 'ensemble_gain': 0.05, 'examples': 10.0},
    {},
    [],
  ),
  'linear_probe': (
    {'top1': 0.9, 'top1_low': 0.6, 'top1_high': 0.95, 'examples': 10.0},
    {'probe': [{'C': 1.0}]},
    [],
  ),
  'few_shot': (
    {'zero_shot': 0.5, 'shots_to_match_zero_shot': 4.0, 'examples': 10.0},
    {'curve': _curve()},
    [],
  ),
  'retrieval': (
    {
      **{
        f'{way}_r{k}': 0.5
        for way in ('image_to_text', 'text_to_image')
        for k in (1, 5, 10)
      },
      'examples': 10.0,
      'texts': 50.0,
    },
    {},
    [],
  ),
  'robustness': (
    {'zero_shot_shift': 0.4, 'effective_robustness': 0.1, 'examples': 10.0},
    {
      'models': [
        {
          'name': 'zero-shot', 'reference_accuracy': 0.5,
          'shift_accuracy': 0.4, 'kind': 'zero_shot',
        },
        {
          'name': '1 shot', 'reference_accuracy': 0.3, 'shift_accuracy': 0.2,
          'kind': 'probe',
        },
      ],
      'fit': [
        {'slope': 1.0, 'intercept': -0.5, 'models': 3, 'through': 'probes'}
      ],
    },
    [],
  ),
  'overlap': (
    {
      'examples': 10.0, 'overlap_examples': 2.0, 'overlap_share': 0.2,
      'accuracy_all': 0.5, 'accuracy_overlap': 1.0, 'accuracy_clean': 0.4,
      'all_minus_clean': 0.1, 'overlap_minus_clean': 0.6,
      'overlap_minus_clean_low': -0.2, 'overlap_minus_clean_high': 0.6,
      'p_value': 0.03,
    },
    {
      'pairs': [
        {
          'test': 'image/0', 'train': 'image/9', 'distance': 3.0,
          'overlapping': True,
        },
        {
          'test': 'image/1', 'train': 'image/8', 'distance': 12.0,
          'overlapping': False,
        },
      ]
    },
    [],
  ),
  'bias': (
    {'examples': 10.0, 'groups': 2.0, 'own names/group': 0.9},
    {
      'rates': [
        {
          'design': design, 'group': group, 'kind': kind, 'rate': 0.5,
          'low': 0.3, 'high': 0.7,
        }
        for design in ('own names', 'paper')
        for group in ('young', 'old')
        for kind in ('group', 'crime-related')
      ],
      'notes': [{'note': 'Groups are labels.'}],
    },
    [],
  ),
}  # fmt: skip
