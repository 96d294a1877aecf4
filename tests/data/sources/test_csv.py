import os
import pickle

import pytest

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import open_source, parse_spec
from clip_jax.data.sources.csv import Columns, CsvSource
from clip_jax.errors import UsageError
from tests.data.images import write_images


@pytest.fixture
def table(tmp_path):
  """Writes a table beside a.png and b.png, and gives its spec."""
  write_images(tmp_path, ['a.png', 'b.png'])

  def write(text: str | bytes, name: str = 'table.csv') -> str:
    data = text if isinstance(text, bytes) else text.encode('utf-8')
    (tmp_path / name).write_bytes(data)
    return f'csv:{tmp_path / name}'

  return write


def test_rows_of_one_image_are_one_record(table):
  source = open_source(
    table('image,caption\na.png,"one, two"\nb.png,ü\na.png,three\n')
  )
  assert len(source) == 2
  assert source[0]['id'] == 'a.png'
  assert source[0]['caption'] == ['one, two', 'three']
  assert source[1]['caption'] == ['ü']
  assert source[0]['image'].startswith(b'\x89PNG')
  assert source.label_names is None
  assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_several_caption_columns_and_a_byte_order_mark(table):
  text = '\ufeffimage,en,de\na.png,door,Tür\nb.png,,Haus\n'
  source = open_source(table(text), captions=('en', 'de'))
  assert [source.captions(i) for i in range(2)] == [['door', 'Tür'], ['Haus']]
  assert list(source.texts()) == ['door', 'Tür', 'Haus']


def test_labels_by_name_are_captions_too(table):
  source = open_source(table('image,label\na.png,red_apple\nb.png,cat\n'))
  assert source.label_names == ('cat', 'red_apple')
  assert source[0]['label'] == 1
  assert source[0]['caption'] == ['red apple']


def test_columns_may_have_other_names_and_a_label_several(table):
  spec = table('file,tone,kind\na.png,dark_red,apple\nb.png,green,\n')
  columns = Columns('file', ('tone', 'kind'))
  with pytest.raises(UsageError, match=r"line 3: b\.png has the label ''"):
    CsvSource(parse_spec(spec), ('caption',), columns)
  spec = table('file,tone,kind\na.png,dark_red,apple\nb.png,green,pear\n')
  source = CsvSource(parse_spec(spec), ('caption',), columns)
  assert source.label_names == ('dark_red apple', 'green pear')
  assert [source[i].get('label') for i in range(2)] == [0, 1]
  assert source[0]['caption'] == ['dark red apple']
  assert source.id(1) == 'b.png'
  assert pickle.loads(pickle.dumps(source))[1] == source[1]
  texts = CsvSource(parse_spec(spec), ('kind',), columns).captions(1)
  assert texts == ['pear']


def test_columns_that_are_named_must_be_there(table):
  spec = table('image,label,caption\na.png,cat,x\n')
  for columns in (Columns('file'), Columns('image', ('file',))):
    with pytest.raises(UsageError, match="no column 'file'; it has caption"):
      CsvSource(parse_spec(spec), ('caption',), columns)


def test_labels_by_number_and_tabs(table):
  text = 'image\tlabel\tcaption\na.png\t7\tx\nb.png\t0\ty\n'
  source = open_source(table(text, 'table.tsv'))
  assert source.label_names is None
  assert [source[i]['label'] for i in range(2)] == [7, 0]
  assert source[0]['caption'] == ['x']


def test_a_missing_image_is_a_corrupt_record(table):
  source = open_source(table('image,caption\nnowhere.png,x\n'))
  with pytest.raises(CorruptImageError, match=r'nowhere\.png: no such file'):
    source[0]
  assert source.id(0) == 'nowhere.png'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('image,text\na.png,x\n', "no column 'caption'; it has image, text"),
    ('picture,caption\na.png,x\n', "no column 'image'; it has caption, pict"),
    ('', "no column 'image'"),
    ('image,caption\n', 'no rows'),
    ('image,caption\na.png,x\n,y\n', 'line 3: the image is empty'),
    (
      'image,label\na.png,cat\na.png,dog\n',
      "line 3: a.png has the label 'dog', and 'cat' before",
    ),
    (b'image,caption\na.png,x\nb.png,T\xfcr\n', r'table\.csv, line 3: not UTF'),
  ],
)
def test_mistakes_are_one_clear_line(table, text, message):
  with pytest.raises(UsageError, match=message) as caught:
    open_source(table(text))
  assert '\n' not in str(caught.value)


def test_a_caption_column_that_is_asked_for_must_be_there(table):
  spec = table('image,label\na.png,cat\n')
  with pytest.raises(UsageError, match="no column 'en'; it has image, label"):
    open_source(spec, captions=('en',))


def test_a_file_has_no_splits_and_must_exist(table):
  spec = table('image,caption\na.png,x\n')
  with pytest.raises(UsageError, match='leave out #train'):
    open_source(f'{spec}#train')
  with pytest.raises(UsageError, match=r'no file /nowhere\.csv'):
    open_source('csv:/nowhere.csv')


@pytest.mark.parametrize(
  ('rows', 'line'),
  [
    ('a.png,x\nb.png,"a dog\na.png,z\n', 3),  # to the end of the file
    ('a.png,x\nb.png,"a dog\na.png,"a cat, big"\n', 3),  # to another quote
    ('a.png,x\nb.png,"a dog\na.png,a nail of 6"\nb.png,y\n', 3),  # inches
    ('a.png,x\r\nb.png,"a dog\r\na.png,z\r\n', 3),
    ('a.png,"one\ntwo"\nb.png,"open\na.png,z\n', 4),
    ('a.png,"one\ntwo\nb.png,three"" four\n', 2),
    ('a.png,"last', 2),
  ],
)
def test_a_quote_that_does_not_close_names_its_line(table, rows, line):
  for delimiter in ',;\t':
    text = f'image,caption\n{rows}'.replace(',', delimiter)
    with pytest.raises(UsageError, match=rf'line {line}: a double quote'):
      open_source(table(text))


def test_a_quote_names_its_line_where_cells_before_it_have_line_breaks(table):
  text = 'image,en,de\na.png,"one\ntwo","offen\nb.png,x,y\n'
  with pytest.raises(UsageError, match='line 3: a double quote'):
    open_source(table(text), captions=('en', 'de'))


def test_quotes_that_close_are_texts(table):
  text = (
    'image, caption\na.png, "one\ntwo, three"\n\n'
    'b.png,"5"" nail"\na.png,5" nail\nb.png,"Hello" she said\n'
  )
  source = open_source(table(text))
  assert source.captions(0) == ['one\ntwo, three', '5" nail']
  assert source.captions(1) == ['5" nail', 'Hello she said']
  with pytest.raises(UsageError, match='line 8: the image is empty'):
    open_source(table(f'{text},x\n'))


def test_long_texts_are_texts(table):
  long = 'a word ' * 30_000
  source = open_source(table(f'image,caption\na.png,"{long}"\nb.png,y\n'))
  assert source.captions(0) == [long.strip()]
  with pytest.raises(UsageError, match='line 3: a double quote'):
    open_source(table(f'image,caption\na.png,x\nb.png,"{long}\n'))


def test_a_nul_is_the_fault_of_its_row(table):
  text = 'image,caption\na.png,x\nb\0.png,y\n\0\0\0\nb.png,z\0z\n'
  source = open_source(table(text))
  assert [source.id(i) for i in range(4)] == [
    'a.png', 'line 3', 'line 4', 'b.png',
  ]  # fmt: skip
  assert source[0]['caption'] == ['x']
  # The id of a row without a path names its line already.
  for index, what in ((1, 'the path'), (2, 'the path'), (3, 'line 5')):
    with pytest.raises(CorruptImageError, match=f'^{what} holds a NUL'):
      source[index]
  assert len(list(source.outline())) == 4
  labels = open_source(table('image,label\na.png,cat\nb\0.png,dog\n'))
  assert labels.label_names == ('cat',)


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_what_spreadsheets_save(table, delimiter, encoding, end):
  rows = ['image;caption;n', 'a.png;größe;1', '', 'b.png;"p;q";2', ';;']
  text = end.join(rows).replace(';', delimiter)
  for start in ('', f'sep={delimiter}{end}'):  # a line of Excel's own
    source = open_source(table(f'{start}{text}'.encode(encoding)))
    assert source.captions(0) == ['größe']
    assert source.captions(1) == [f'p{delimiter}q']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('image,caption,caption\na.png,x,y\n', "line 1: 2 columns are called 'cap"),
    ('image,caption\n\na.png,a cat, brown\n', 'line 3: 3 cells, where the he'),
    ('image;caption\na.png;a;b\n', 'with a semicolon in it'),
    ('image,caption\na.png,x\n'.encode('utf-16-le'), 'not UTF-8'),
  ],
)
def test_damaged_tables_are_one_clear_line(table, text, message):
  with pytest.raises(UsageError, match=message):
    open_source(table(text))


def test_images_without_captions_are_counted_and_named(table):
  source = open_source(table('image,caption\na.png\nb.png,y,,\n'))
  assert [source.captions(i) for i in range(2)] == [[], ['y']]
  (notice,) = source.notices
  assert "1 of 2 images have no caption ('a.png')" in notice
  assert source.captioned() == [1]


def test_rows_of_what_is_no_file_are_corrupt_records(table, tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  names = ('pipe.png', '/dev/zero', '.', 'https://example.org/a.png')
  rows = ''.join(f'{name},x\n' for name in names)
  source = open_source(table(f'image,caption\n{rows}'))
  for index, reason in enumerate(('a pipe', 'a pipe', 'a folder', 'a URL')):
    with pytest.raises(CorruptImageError, match=reason):
      source[index]
  with pytest.raises(UsageError, match='no regular file'):
    open_source(f'csv:{tmp_path}/pipe.png')
