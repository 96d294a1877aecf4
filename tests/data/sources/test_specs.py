import pytest

from clip_jax.data.sources import SCHEMES, parse_spec, same_data, split_mixture
from clip_jax.errors import UsageError


def test_a_spec_has_a_scheme_a_location_and_perhaps_a_split(tmp_path):
  assert parse_spec('tfds:emoji#train[:10%]')[1:] == (
    'tfds', 'emoji', 'train[:10%]'
  )  # fmt: skip
  assert parse_spec('tfds:emoji')[1:] == ('tfds', 'emoji', '')
  spec = parse_spec(f'folder:{tmp_path}#one+two')
  assert spec[1:] == ('folder', str(tmp_path), 'one+two')


def test_a_path_may_hold_a_hash_sign(tmp_path):
  (tmp_path / 'a#b').mkdir()
  spec = parse_spec(f'folder:{tmp_path}/a#b')
  assert (spec.location, spec.split) == (f'{tmp_path}/a#b', '')
  spec = parse_spec(f'folder:{tmp_path}/a#b#c')
  assert (spec.location, spec.split) == (f'{tmp_path}/a#b', 'c')
  assert spec.path() == f'{tmp_path}/a#b/c'


def test_a_split_of_a_path_is_a_sub_folder_of_it(tmp_path):
  assert parse_spec(f'folder:{tmp_path}#x').path() == f'{tmp_path}/x'
  (tmp_path / 'table.csv').write_text('image\n')
  with pytest.raises(UsageError, match=r'a file has no splits; leave out #x'):
    parse_spec(f'csv:{tmp_path}/table.csv#x').path()


def test_the_path_of_a_folder_or_a_table_is_a_spec(tmp_path):
  (tmp_path / 'table.TSV').write_text('image\n')
  assert parse_spec(str(tmp_path)).text == f'folder:{tmp_path}'
  assert parse_spec(f'{tmp_path}#x')[1:] == ('folder', str(tmp_path), 'x')
  assert parse_spec(f'{tmp_path}/table.TSV').scheme == 'csv'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', f'SCHEME one of {", ".join(SCHEMES)}'),
    ('nonesuch:x', "data 'nonesuch:x': no such folder or table, and no spec"),
    ('tfds:', "data 'tfds:': nothing after tfds:"),
  ],
)
def test_what_is_no_spec_is_refused(text, message):
  with pytest.raises(UsageError, match=message):
    parse_spec(text)


def test_errors_name_the_spec_and_the_line():
  spec = parse_spec('csv:pairs.csv')
  assert str(spec.error('no rows')) == "data 'csv:pairs.csv': no rows"
  assert str(spec.error('x', 7)) == "data 'csv:pairs.csv', line 7: x"


def test_a_mixture_is_split_into_its_specs():
  assert split_mixture('csv:a.csv :: tfds:b#c') == ['csv:a.csv', 'tfds:b#c']
  assert split_mixture('') == ['']


def test_one_data_set_may_be_written_in_two_ways(tmp_path):
  (tmp_path / 'test').mkdir()
  assert same_data(f'folder:{tmp_path}#test', f' {tmp_path}/./test')
  assert not same_data(f'folder:{tmp_path}', f'{tmp_path}/test')
  assert same_data('tfds:emoji#test', 'tfds:emoji#test ')
  assert not same_data('tfds:emoji#test', 'tfds:emoji')
