"""Designs from files, and each mistake in them as one line."""

import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.tasks.bias_designs import (
  added_names,
  candidates,
  checked,
  read_designs,
  shipped_designs,
)


def write(folder, text):
  path = folder / 'designs.json'
  path.write_text(text)
  return path


def test_a_file_has_designs_kinds_and_names(tmp_path):
  path = write(tmp_path, '{"source": "me", "d": {"k": ["a", "b"]}}')
  assert read_designs(path) == {'d': {'k': ('a', 'b')}}


def test_the_shipped_designs_have_the_papers_counts():
  designs = shipped_designs()
  paper = designs['paper']
  assert [len(names) for names in paper.values()] == [14, 3, 4]
  assert designs['paper and child'] == {**paper, 'child': ('child',)}
  own = designs['own and added names']
  assert own['crime-related'] == paper['crime-related']
  assert own['non-human'] == paper['non-human']
  candidates(designs, ['Male', 'Female'])


def test_the_groups_stand_where_the_slot_is():
  designs = {
    'a': {'x': ['thief'], 'own': ['{groups}', 'child']},
    'b': {'y': ['child', 'thief']},
  }
  assert added_names(designs) == ('thief', 'child')
  result = candidates(designs, ['old', 'young'])
  assert result['a'].names == ('thief', 'old', 'young', 'child')
  assert result['a'].columns.tolist() == [2, 0, 1, 3]
  assert result['a'].kind_of.tolist() == [0, 1, 1, 1]
  assert result['a'].kinds == ('x', 'own')
  assert result['a'].has_groups
  assert result['b'].columns.tolist() == [3, 2]
  assert not result['b'].has_groups


def test_groups_may_share_a_name_among_themselves():
  designs = {'a': {'own': ['{groups}']}}
  result = candidates(designs, ['crane', 'crane'])['a']
  assert result.columns.tolist() == [0, 1]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{', 'designs: .*designs.json is not JSON.*; use a JSON file of'),
    ('[]', r'use an object, {"design": {…}}'),
    ('{}', 'there is no design in it'),
    ('{"source": "me"}', 'there is no design in it'),
    ('{"d": ["a"]}', r"'d': use an object of kinds, {\"kind\""),
    ('{"d": {}}', "'d': use an object of kinds"),
    ('{"d": {"k": "a"}}', "'d', 'k': use a list of names"),
    ('{"d": {"k": []}}', "'d', 'k': use a list of names"),
    ('{"d": {"k": ["a", 1]}}', "'d', 'k': 1 is no name"),
    ('{"d": {"k": ["a", " "]}}', "'d', 'k': ' ' is no name"),
  ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
  with pytest.raises(UsageError, match=message) as caught:
    read_designs(write(tmp_path, text))
  assert '\n' not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(UsageError, match='no such file; use a JSON'):
    read_designs(tmp_path / 'nosuch.json')


@pytest.mark.parametrize(
  ('kinds', 'message'),
  [
    ({'x': ['a', 'a']}, "design 'd' has the name 'a' twice"),
    ({'x': ['a'], 'y': ['a', 'b']}, "design 'd' has the name 'a' twice"),
    ({'x': ['old'], 'own': ['{groups}']}, "'old', which is a class of the"),
    ({'own': ['{groups}'], 'x': ['old']}, "adds the name 'old', which is a"),
    ({'own': ['{groups}', '{groups}']}, "has the name '{groups}' twice"),
    ({'x': ['a']}, "design 'd' has one name"),
  ],
)
def test_names_that_cannot_be_chosen_among_are_refused(kinds, message):
  with pytest.raises(UsageError, match=message):
    candidates(checked({'d': kinds}, 'here'), ['old', 'young'])
