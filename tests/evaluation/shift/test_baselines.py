"""Tables of standard models that are something else: one line."""

import os

import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.shift.baselines import COLUMNS, read_baselines

HEAD = ','.join(COLUMNS)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'\xff\xfe\0', 'not UTF-8'),
    (b'a,b\n1,2\n', "no column 'model'"),
    (f'{HEAD}\nm,0.5,high\n'.encode(), 'line 2: shift_accuracy'),
    (f'{HEAD}\nm,0.5,nan\n'.encode(), 'line 2: shift_accuracy'),
    (f'{HEAD}\nm,0.5\n'.encode(), 'line 2: shift_accuracy'),
    (f'{HEAD}\nm,{"9" * 200_000},1\n'.encode(), 'baselines'),
  ],
)
def test_other_tables_are_one_line(tmp_path, text, message):
  path = tmp_path / 'b.csv'
  path.write_bytes(text)
  with pytest.raises(UsageError, match=message):
    read_baselines(str(path))


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'b.csv')
  with pytest.raises(UsageError, match='a pipe or a device'):
    read_baselines(str(tmp_path / 'b.csv'))
