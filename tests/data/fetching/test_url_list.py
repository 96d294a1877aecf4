import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.fetching import url_list
from clip_jax.data.fetching.url_list import (
  ListColumns,
  join_batches,
  read_batches,
)
from clip_jax.errors import FailureError, UsageError

URLS = ['http://a/1.jpg', 'https://b/2.jpg?x=1,2']
ROWS = [
  {'url': URLS[0], 'caption': 'one, "two"', 'score': 0.5},
  {'url': URLS[1], 'caption': 'drei', 'score': 2.0},
]


def read(path, **columns):
  batches = list(read_batches(str(path), ListColumns(**columns)))
  return join_batches(batches).to_pylist()


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


CSV = (
  f'url,caption,score\n{URLS[0]},"one, ""two""",0.5\n\n"{URLS[1]}",drei,2.0\n'
)
TSV = (
  f'url\tcaption\tscore\n{URLS[0]}\t"one, ""two"""\t0.5\n{URLS[1]}\tdrei\t2.0\n'
)
JSON_LINES = ''.join(json.dumps(row) + '\n' for row in ROWS)


@pytest.mark.parametrize(
  'content',
  [CSV, '\ufeff' + CSV, TSV, JSON_LINES, gzip.compress(CSV.encode(), mtime=0),
   CSV.replace('\n', '\r\n')],
)  # fmt: skip
def test_a_list_is_told_by_its_content(tmp_path, content):
  assert read(write(tmp_path / 'list.txt', content)) == ROWS


def test_parquet(tmp_path):
  path = tmp_path / 'list.csv'
  table = pa.Table.from_pylist(
    [{'URL': x['url'], 'TEXT': x['caption'], 'score': x['score']} for x in ROWS]
  )
  pq.write_table(table, path)
  assert read(path) == ROWS
  with pytest.raises(UsageError, match=r"no column 'href'; it has URL, TEXT"):
    read(path, url='href')
  swapped = read(path, url='TEXT', caption='URL')
  assert swapped[0] == {
    'url': ROWS[0]['caption'], 'caption': URLS[0], 'score': 0.5
  }  # fmt: skip
  data = path.read_bytes()
  with pytest.raises(FailureError, match='damaged'):
    read(write(path, data[: len(data) // 2]))


def test_plain_text_is_a_url_a_line_and_a_caption_behind_a_tab(tmp_path):
  path = write(tmp_path / 'x', f'{URLS[0]}\n\n  {URLS[1]} \n')
  assert read(path) == [{'url': x} for x in URLS]
  path = write(tmp_path / 'x', f'{URLS[0]}\ta cat\n{URLS[1]}\n')
  assert read(path) == [
    {'url': URLS[0], 'caption': 'a cat'}, {'url': URLS[1], 'caption': None}
  ]  # fmt: skip


def test_columns_with_our_names_are_renamed(tmp_path):
  path = write(
    tmp_path / 'x', 'url,status,width,TEXT,key\nhttp://a/b,1,2,3,4\n'
  )
  assert read(path) == [
    {'url': 'http://a/b', 'list_status': 1, 'list_width': 2, 'caption': '3',
     'list_key': 4}
  ]  # fmt: skip


def test_cells_that_no_number_writes_stay_texts(tmp_path):
  cells = ['7', '-0.5', '12e4', '12e456', '3.10', '1e-05', '007', '']
  lines = [f'http://a/b,{cell}' for cell in cells]
  for cell, line in zip(cells, lines, strict=True):
    [row] = read(write(tmp_path / 'x', f'url,id\n{line}\n'))
    numbers = {'7': 7, '-0.5': -0.5, '1e-05': 1e-05, '': None}
    assert row['id'] == numbers.get(cell, cell)
  rows = read(write(tmp_path / 'x', 'url,id\n' + '\n'.join(lines)))
  assert [row['id'] or '' for row in rows] == cells


def test_damaged_rows_have_no_url(tmp_path):
  lines = [json.dumps(ROWS[0]), '{"url": ', '[1]', '{"other": 3}', '{"url": 5}']
  rows = read(write(tmp_path / 'x', '\n'.join(lines)))
  assert [row['url'] for row in rows] == [URLS[0], None, None, None, '5']
  rows = read(write(tmp_path / 'x', 'url,caption\nhttp://a/b\nc,d,,\n'))
  assert rows[0] == {'url': 'http://a/b', 'caption': ''}
  assert rows[1] == {'url': 'c', 'caption': 'd'}


@pytest.mark.parametrize('delimiter', ['\t', ';'])
@pytest.mark.parametrize('name', ['url', 'URL', 'link'])
@pytest.mark.parametrize(
  ('rows', 'line'),
  [
    ('http://a/1,"Sunset\nhttp://a/2,x\n', 2),  # to the end of the file
    ('http://a/1,"Sunset\nhttp://a/2,"Beach"\n', 2),  # to another quote
    ('http://a/1,"Sunset\nhttp://a/2,6"\nhttp://a/3,x\n', 2),  # inches
    ('http://a/1,"one\ntwo"\n\nhttp://a/2,"open\r\nhttp://a/3,x\r\n', 5),
  ],
)
def test_a_quote_that_swallows_rows_names_its_line(
  tmp_path, delimiter, name, rows, line
):
  columns = {'url': name} if name == 'link' else {}
  text = f'{name},caption\n{rows}'.replace(',', delimiter)
  for start in (0, 2):  # empty lines before the header
    path = write(tmp_path / 'x', '\n' * start + text)
    message = f'x, line {line + start}: a double quote opens a cell that is not'
    with pytest.raises(UsageError, match=message):
      read(path, **columns)


def test_a_quote_that_swallows_a_long_list_names_its_line(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(url_list, '_MAX_LINE', 1000)
  rows = ''.join(f'http://a/{i},x\n' for i in range(200))
  path = write(tmp_path / 'x', f'url,caption\nhttp://a/b,"Sunset\n{rows}')
  with pytest.raises(UsageError, match='line 2: a double quote'):
    read(path)
  path = write(tmp_path / 'x', f'url,caption\nhttp://a/b,{"x" * 2000}\n')
  with pytest.raises(UsageError, match='a line of over 1,000 characters'):
    read(path)


def test_a_caption_with_a_delimiter_must_be_quoted(tmp_path):
  text = 'url,caption\nhttp://a/1,"A dog, a cat"\nhttp://a/2,A dog, a cat\n'
  with pytest.raises(
    UsageError, match=r'line 3: 3 cells, .* with a comma in it'
  ):
    read(write(tmp_path / 'x', text))


def test_quoted_captions_of_several_lines(tmp_path):
  text = 'url,caption\nhttp://a/1,"see\nhttp://b\nParis, ""hi"""\n'
  [row] = read(write(tmp_path / 'x', text))
  assert row['caption'] == 'see\nhttp://b\nParis, "hi"'


def test_values_of_several_types_become_text(tmp_path):
  values = ['1', '"b"', '[2]', '"\\ud800"', 'null']
  lines = [f'{{"url": "http://a/{i}", "x": {x}}}' for i, x in enumerate(values)]
  rows = read(write(tmp_path / 'x', '\n'.join(lines)))
  assert [row['x'] for row in rows] == ['1', 'b', '[2]', '?', None]
  table = pa.table({'url': ['c'], 'x': [1.5]})
  joined = join_batches([pa.table({'url': ['a'], 'x': ['b']}), table])
  assert joined.column('x').to_pylist() == ['b', '1.5']


def test_where_some_rows_have_several_captions_all_have_lists(tmp_path):
  values = ['"a"', '["b", 2, null, "\\ud800"]', 'null', '[]', '5', '[[1]]']
  lines = [f'{{"url": "c", "caption": {x}, "n": 1.5}}' for x in values]
  wanted = [['a'], ['b', '2', '?'], None, [], ['5'], ['[1]']]
  rows = read(write(tmp_path / 'x', '\n'.join(lines)))
  assert [row['caption'] for row in rows] == wanted
  # In other batches, too, and no other column becomes text.
  batches = [
    next(read_batches(str(write(tmp_path / 'x', line)), ListColumns()))
    for line in lines
  ]
  rows = join_batches(batches).to_pylist()
  assert [row['caption'] for row in rows] == wanted
  assert [row['n'] for row in rows] == [1.5] * 6


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'no URLs'), ('\n\n', 'no URLs'), ('image,text\na,b\n', 'no column'),
    ('[{"url": 1}]', 'a JSON array'), (b'\x00\x01\x02', 'neither Parquet'),
    (b'url,caption\nhttp://a/\xff,x\n', 'not UTF-8'),
    ('{"image": "x"}', 'no column url'), ('""\n', 'no column url'),
  ],
)  # fmt: skip
def test_what_is_no_list(tmp_path, content, message):
  with pytest.raises(UsageError, match=message):
    read(write(tmp_path / 'x', content))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_an_error(tmp_path_factory, content):
  path = write(tmp_path_factory.mktemp('list') / 'x', content)
  for start in (b'', b'url,caption\n', b'{"url": "x"}\n', b'PAR1', b'\x1f\x8b'):
    try:
      read(write(path, start + content))
    except (UsageError, FailureError):
      continue
