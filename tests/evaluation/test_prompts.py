"""Warnings of truncated prompts, and of classes whose prompts are equal."""

import dataclasses

import pytest

from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.prompts import (
  prompt_warnings,
  warnings_of_prompts,
)
from clip_jax.evaluation.suite.collected import warnings_of
from clip_jax.evaluation.tasks.bias_designs import checked
from clip_jax.evaluation.types import BiasOptions, FewShotOptions, ProbeOptions
from clip_jax.tokenizers.clip import CLIPTokenizer
from tests.evaluation.fakes import ListSource, TableEncoder, unit

WORDS = 4  # that the encoder reads, beside the beginning and the end
NAMES = (('cat',), ('dog',), ('red bird',))


class Short(TableEncoder):
  """Every text is the same to it; it reads its first four words."""

  def __init__(self):
    super().__init__({0: [1, 0], 1: [1, 0]}, {})
    self.tokenizer = CLIPTokenizer(context_length=WORDS + 2)

  def encode_text(self, texts):
    return unit([[1, 0] for _ in texts])


def split(labels=(0, 1, 2)) -> Split:
  return Split(
    ListSource(
      [i % 2 for i in range(len(labels))],
      labels=labels,
      captions=[['a cat by the far sea']] * len(labels),
    )
  )


DATA = Dataset('pets', split(), class_names=NAMES, templates=('a {}',))
ENCODER = Short()


def warnings_for(templates, names=NAMES, encoder: TableEncoder = ENCODER):
  data = dataclasses.replace(DATA, class_names=names)
  return [
    row['warning']
    for row in prompt_warnings(encoder, data, Options(), templates)
  ]


def test_prompts_that_fit_give_no_warning():
  assert warnings_for(['a small {}']) == []  # 'a small red bird' are four words


def test_truncated_prompts_are_counted():
  assert warnings_for(['a {}', 'a small pet {}']) == [
    "data 'pets': 1 of 6 prompts are longer than the 6 tokens that the model "
    'reads, and were truncated.'
  ]


def test_classes_whose_names_are_truncated_away_are_equal():
  (line,) = warnings_for(['a photo of the {}'])
  assert line.endswith(
    'were truncated: 3 of 3 classes cannot be told apart from others: '
    'cat = dog = red bird.'
  )
  # 'a pet of red' is another than 'a pet of cat'.
  (line,) = warnings_for(['a pet of {} now'])
  assert line.endswith('3 of 3 prompts are longer than the 6 tokens that the '
                       'model reads, and were truncated.')  # fmt: skip
  names = (('red cat',), ('red dog',), ('fish',))
  (line,) = warnings_for(['a pet of {}'], names)
  assert line.endswith(
    'were truncated: 2 of 3 classes cannot be told apart from others: '
    'red cat = red dog.'
  )


def test_one_different_prompt_distinguishes_two_classes():
  (line,) = warnings_for(['a photo of the {}', 'a {}'])
  assert 'told apart' not in line


def test_a_truncated_prompt_may_equal_another_class_in_full():
  (line,) = warnings_for(['my own {}'], (('old cat',), ('old cat here',)))
  assert line.endswith('1 of 2 prompts are longer than the 6 tokens that the '
                       'model reads, and were truncated: 2 of 2 classes cannot '
                       'be told apart from others: old cat = old cat here.'
                       )  # fmt: skip


def test_classes_of_one_name_are_not_attributed_to_truncation():
  names = (('crane',), ('crane',), ('a very old red bird',))
  truncated, alike = warnings_for(['a {}'], names)
  assert 'told apart' not in truncated
  assert alike == (
    "data 'pets': 2 of 3 classes cannot be told apart from others: "
    'crane (2 classes).'
  )


def test_warns_of_different_names_with_equal_tokens():
  names = (('Crane',), ('crane',), ('red bird', 'bird'), ('bird', 'red bird'))
  assert warnings_for(['a {}'], names) == [
    "data 'pets': 4 of 4 classes cannot be told apart from others: "
    'Crane = crane, red bird = bird.'
  ]


def test_all_names_and_templates_of_a_class_are_compared():
  names = (('cat', 'red bird'), ('cat', 'blue bird'), ('dog',))
  (line,) = warnings_for(['this is a {}'], names)
  assert '2 of 5 prompts' in line and 'told apart' not in line
  (line,) = warnings_for(['this is a big {}'], names)
  # Two equal prompts have the mean of one.
  assert line.endswith('5 of 5 prompts are longer than the 6 tokens that the '
                       'model reads, and were truncated: 3 of 3 classes cannot '
                       'be told apart from others: cat (2 classes) = dog.'
                       )  # fmt: skip


def test_without_a_tokenizer_the_prompts_are_compared_in_full():
  plain = TableEncoder({}, {})
  assert warnings_for(['a photo of the {}'], encoder=plain) == []
  (line,) = warnings_for(['{}'], (('cat',), ('dog',), ('cat',)), plain)
  assert line.endswith('from others: cat (2 classes).')


def test_of_many_groups_some_are_named_and_long_names_are_shortened():
  names = tuple((word,) for word in 'abcdefgh' for _ in range(2))
  (line,) = warnings_for(['{}'], names, TableEncoder({}, {}))
  assert line.endswith(
    '16 of 16 classes cannot be told apart from others: a (2 classes), '
    'b (2 classes), c (2 classes), d (2 classes), e (2 classes), ….'
  )
  long = (('long ' * 99,), ('long ' * 99,))
  (line,) = warnings_for(['{}'], long, TableEncoder({}, {}))
  assert len(line) < 200


def test_other_things_than_classes_are_called_so():
  prompts = [['a cat by the sea'], ['a cat by the lake'], ['a dog']]
  names = [own[0] for own in prompts]
  (row,) = warnings_of_prompts(ENCODER, 'texts', prompts, names, 'texts')
  assert row['warning'].endswith(
    'truncated: 2 of 3 texts cannot be told apart from others: '
    'a cat by the sea = a cat by the lake.'
  )


@pytest.mark.parametrize(
  ('task', 'start_from_text'),
  [
    ('zero_shot', False),
    ('prompt_gain', False),
    ('few_shot', False),
    ('linear_probe', True),
    ('robustness', False),
    ('overlap', False),
    ('bias', False),
    ('retrieval', False),
  ],
)
def test_every_task_with_prompts_tells_it(task: str, start_from_text: bool):
  data = dataclasses.replace(
    DATA, train=split((0, 1, 2) * 4), templates=('a photo of the {}',)
  )
  data = dataclasses.replace(data, reference=data)
  designs = checked({'own': {'group': ['{groups}']}}, 'of a test')
  options = Options(
    probe=ProbeOptions(start_from_text=start_from_text, C=1.0),
    few_shot=FewShotOptions(examples_per_class=(1,), seeds=1),
    bias=BiasOptions(designs=designs),
  )
  result = find_evaluator(task)(ENCODER, data, options)
  (line,) = {row['warning'] for row in result.tables['warnings']}
  what = '1 of 1 prompts' if task == 'retrieval' else '3 of 3 prompts'
  assert line.startswith(f"data 'pets': {what} are longer")
  if task == 'linear_probe':
    options = dataclasses.replace(options, probe=ProbeOptions(C=1.0))
    result = find_evaluator(task)(ENCODER, data, options)
    assert result.tables['warnings'] == []


def test_the_common_prompt_is_judged_by_itself():
  result = find_evaluator('prompt_gain')(ENCODER, DATA, Options())
  (row,) = result.tables['warnings']
  # 'a photo of a cat.': the name is the fifth word.
  assert '3 of 3 classes cannot be told apart' in row['warning']


def test_a_suite_tells_each_line_once():
  tables = {'warnings': [{'warning': 'one'}]}
  results = [
    {'tables': tables},
    {'tables': {}},
    {'tables': {'warnings': [{'warning': 'two'}, {'warning': 'one'}]}},
  ]
  assert warnings_of({'results': results}) == ['one', 'two']
