"""The list of queries, by the rules of the paper, from files of each kind."""

import bz2
import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data.curation.queries import (
  QueryFiles,
  build_queries,
  write_queries,
)
from clip_jax.errors import FailureError, UsageError


def build(**fields):
  queries, left_out = build_queries(QueryFiles(**fields))
  return [(x.query, x.origin, x.count) for x in queries], left_out


@pytest.fixture
def file(tmp_path):
  def write(content, name='file.txt'):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    return str(path)

  return write


def test_words_have_a_count_of_at_least_100(file):
  path = file('dog 250\nthe\t99999\nokapi,100\nrare 99\nThe 1\n')
  queries, left_out = build(words=(path,))
  assert queries == [
    ('dog', 'words', 250), ('the', 'words', 100_000), ('okapi', 'words', 100)
  ]  # fmt: skip
  assert left_out == {'rare word': 1}
  assert build(words=(path,), min_count=99)[0][-1] == ('rare', 'words', 99)


def test_bigrams_are_those_of_the_highest_mutual_information(file):
  words = file('new 1000\nyork 200\nof 5000\nthe 9000\nsan 300\n', 'words')
  pairs = file(
    'new york 150\nof the 3000\nsan\tyork 1\nlos angeles 500\na b c 200\n',
    'pairs',
  )
  queries, left_out = build(words=(words,), bigrams=(pairs,))
  total = 1000 + 200 + 5000 + 9000 + 300
  assert math.log2(150 * total / (1000 * 200)) > math.log2(
    3000 * total / (5000 * 9000)
  )
  assert queries[5:] == [
    ('new york', 'bigrams', 150), ('of the', 'bigrams', 3000)
  ]  # fmt: skip
  assert left_out == {
    'rare bi-gram': 1,
    'bi-gram of unknown words': 1,
    'not two words': 1,
  }
  few = build(words=(words,), bigrams=(pairs,), max_bigrams=1)[0]
  assert few[5:] == [('new york', 'bigrams', 150)]
  high = build(words=(words,), bigrams=(pairs,), min_pmi=2.0)[0]
  assert high[5:] == [('new york', 'bigrams', 150)]
  with pytest.raises(UsageError, match='--bigrams needs the counts'):
    build(bigrams=(pairs,))


def test_titles_may_have_a_count_after_a_tab(file):
  path = file('Blade Runner 2049\nNew_York_City\t70\nNobody\t3\n')
  queries, left_out = build(titles=(path,), min_title_count=70)
  assert queries == [
    ('Blade Runner 2049', 'titles', None), ('New York City', 'titles', 70)
  ]  # fmt: skip
  assert left_out['rare title'] == 1


DATA = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 1 n 0000 | a
00002098 00 a 02 unable(p) 0 ill-equipped 0 001 ! 00001740 a 0101 | (usually
"""
INDEX = """  1 This software and database is being provided to you
dog n 7 5 @ ~ #m #p %m 7 1 02084071
hot_dog n 3 3 @ ~ + 3 1 07697537
"""


def test_synsets_are_wordnets(file, tmp_path):
  data = file(DATA, 'dict/data.noun')
  names = ['entity', 'dog', 'domestic dog', 'Canis familiaris', 'unable']
  names.append('ill-equipped')
  assert [x[0] for x in build(synsets=(data,))[0]] == names
  folder = str(tmp_path / 'dict')
  assert [x[0] for x in build(synsets=(folder,))[0]] == names
  index = file(INDEX, 'index.noun')
  assert [x[0] for x in build(synsets=(index,))[0]] == ['dog', 'hot dog']
  plain = file('hot_dog\ncat\n', 'plain.txt')
  assert [x[0] for x in build(synsets=(plain,))[0]] == ['hot dog', 'cat']
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UsageError, match='has no file of WordNet'):
    build(synsets=(str(tmp_path / 'empty'),))
  broken = file('00001740 03 n 09 entity 0', 'data.verb')
  with pytest.raises(FailureError, match=r'data.verb, line 1: .*of 9 words'):
    build(synsets=(broken,))


def test_queries_come_from_one_list_and_each_once(file, tmp_path):
  words = file('dog 500\ncat 500\n', 'words')
  synsets = file('dog\nCAT\nokapi\n!!\n', 'synsets')
  queries, left_out = build(words=(words,), synsets=(synsets,))
  assert [x[:2] for x in queries] == [
    ('dog', 'words'), ('cat', 'words'), ('okapi', 'synsets')
  ]  # fmt: skip
  assert left_out == {'twice': 2, 'no letter or digit': 1}


def test_lists_are_lines_json_or_parquet_compressed_or_not(file, tmp_path):
  names = ['red apple', 'green pear']
  text = '\n'.join(names)
  paths = [
    file(text, 'a.txt'),
    file(json.dumps(names), 'b.json'),
    file(gzip.compress(text.encode()), 'c'),
    file(bz2.compress(text.encode()), 'd'),
  ]
  written = tmp_path / 'e.parquet'
  write_queries(build_queries(QueryFiles(lists=(paths[0],)))[0], written)
  for path in [*paths, str(written)]:
    assert [x[0] for x in build(lists=(path,))[0]] == names
  other = tmp_path / 'f.parquet'
  pq.write_table(pa.table({'name': names}), other)
  with pytest.raises(FailureError, match='no column `query`'):
    build(lists=(str(other),))


def test_errors_name_the_file_and_the_line(file):
  with pytest.raises(FailureError, match=r"line 2: 'cat' is no word and its"):
    build(words=(file('dog 100\ncat\n'),))
  with pytest.raises(FailureError, match=r'file.txt, line 1: .*utf-8'):
    build(lists=(file(b'\xff\xfe'),))
  with pytest.raises(FailureError, match='no such file'):
    build(lists=('nowhere',))
  with pytest.raises(FailureError, match='JSON list of queries holds strings'):
    build(lists=(file('[1, 2]'),))
  with pytest.raises(UsageError, match='no query is left of 1 file'):
    build(words=(file('dog 1'),))
