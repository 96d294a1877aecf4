"""The table of standard models, and every way to write it wrongly."""

import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.baselines import Baseline, read_baselines

HEAD = 'model,reference_accuracy,shift_accuracy\n'
ROWS = 'a,0.6,0.3\n"b, large",0.7,0.4\nc,0.8,0.5\n'


def written(tmp_path, text):
  path = tmp_path / 'models.csv'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(path)


@pytest.mark.parametrize(
  'text',
  [
    HEAD + ROWS,
    '\ufeff' + HEAD.replace('\n', '\r\n') + ROWS,
    'shift_accuracy,year,model,reference_accuracy\n0.3,1,a,0.6\n'
    '0.4,2,"b, large",0.7\n0.5,3,c,0.8\n',
  ],
)
def test_columns_are_found_by_name(tmp_path, text):
  assert read_baselines(written(tmp_path, text)) == [
    Baseline('a', 0.6, 0.3),
    Baseline('b, large', 0.7, 0.4),
    Baseline('c', 0.8, 0.5),
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', "has no column 'model': begin with the line model,reference_acc"),
    (HEAD[:20] + '\n', "no column 'reference_accuracy'"),
    (HEAD + ROWS + 'd,76.2,0.5\n', r"line 5: reference_accuracy '76.2' is no"),
    (HEAD + ROWS + 'd,0.7,\n', r"line 5: shift_accuracy '' is no fraction"),
    (HEAD + ROWS + 'd,0.7\n', r'line 5: shift_accuracy None is no fraction'),
    (HEAD + ROWS + 'd,nan,0\n', r"line 5: reference_accuracy 'nan' is no"),
    (HEAD + ROWS + ',0.7,0.1\n', r'line 5: the model has no name'),
    (HEAD + ROWS[:10], 'has 1 models: a line needs three or more'),
    (b'\xff\xfe\x00', 'is no text in UTF-8'),
  ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, text, message):
  with pytest.raises(UsageError, match=message) as caught:
    read_baselines(written(tmp_path, text))
  assert '\n' not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UsageError, match=r"nosuch.csv': No such file"):
    read_baselines(str(tmp_path / 'nosuch.csv'))
