"""A whole curation: its counts, its caps, and the same bytes on any engine."""

import itertools
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data import storage
from clip_jax.data.curation import pipeline
from clip_jax.data.curation.settings import Settings
from clip_jax.data.prepare.engine import Engine
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.dedup import find_near_copies
from tests.data.curation import corpus

ONE = Engine('local', 1)
ENGINES = [
  pytest.param(Engine('local', 2), marks=pytest.mark.slow),
  pytest.param(Engine('beam', 2), marks=pytest.mark.engines),
  pytest.param(Engine('ray', 2), marks=pytest.mark.engines),
]


@pytest.fixture(scope='module')
def metadata(tmp_path_factory):
  return corpus.write(tmp_path_factory.mktemp('corpus') / 'metadata')


@pytest.fixture(scope='module')
def made(metadata, tmp_path_factory):
  """One curation by one worker, and its result."""
  out = tmp_path_factory.mktemp('made') / 'out'
  return out, corpus.curate(metadata, out, ONE)


def test_the_funnel_adds_up(made):
  out, result = made
  steps = result['steps']
  assert [x['step'] for x in steps] == [
    'read', 'text', 'match', 'copies', 'balance'
  ]  # fmt: skip
  assert steps[0]['in'] == result['rows_in'] == 1200
  for before, after in itertools.pairwise(steps):
    assert before['out'] == after['in']
  for step in steps:
    assert step['in'] - step['out'] == sum(step['dropped'].values())
  assert steps[-1]['out'] == result['rows_out'] == len(corpus.read(out))
  assert steps[1]['dropped'] == {'no text': 12}
  assert steps[2]['dropped'] == {'no query': 12}
  assert steps[3]['dropped']['the same image and text'] > 10


def test_the_caps_hold_exactly(made):
  """Each query chooses the smaller of its pairs and the limit; what it chose is
  in `queries`, what a text has besides in `matched_queries`.
  """
  out, _ = made
  table = corpus.read(out)
  chosen = corpus.counts(table, 'queries')
  matched = corpus.counts(table, 'matched_queries')
  for row in pq.read_table(out / 'queries.parquet').to_pylist():
    query = row['query']
    assert chosen[query] == row['chosen']
    assert row['chosen'] == min(row['matches'], corpus.PER_QUERY)
    assert matched[query] == row['matches_kept'] >= row['chosen']
  assert matched['word0'] > corpus.PER_QUERY
  for row in table.to_pylist():
    assert row['queries']
    assert set(row['queries']) <= set(row['matched_queries'])
    for query in row['matched_queries']:
      assert f' {query} ' in f' {row["caption"]} '


def test_no_pair_of_a_rare_query_is_lost(made, metadata):
  out, _ = made
  rows = pq.read_table(out / 'queries.parquet').to_pylist()
  rare = [row for row in rows if 0 < row['matches'] <= corpus.PER_QUERY]
  assert rare
  assert all(row['matches_kept'] == row['matches'] for row in rare)


def test_shards_are_of_about_the_size_that_was_asked_for(made):
  out, result = made
  sizes = [pq.read_metadata(out / name).num_rows for name in result['files']]
  assert len(sizes) > 1
  assert all(100 < size < 600 for size in sizes)


@pytest.mark.parametrize('engine', ENGINES, ids=lambda x: x.name)
def test_engines_and_worker_counts_write_the_same_bytes(
  engine, metadata, made, tmp_path
):
  out = tmp_path / 'out'
  corpus.curate(metadata, out, engine)
  assert corpus.contents(out) == corpus.contents(made[0])


@pytest.mark.slow
def test_a_killed_curation_goes_on(metadata, made, tmp_path):
  out = tmp_path / 'out'
  command = [
    sys.executable, '-m', 'tests.data.curation.corpus', str(metadata),
    str(out), 'local', '2',
  ]  # fmt: skip
  rng = random.Random(0)
  for stage in ('select', 'copies', 'balance'):
    process = subprocess.Popen(command, start_new_session=True)
    markers = out / '.work' / '.stages' / stage
    while process.poll() is None:
      if len(list(markers.glob('0*.json'))) > rng.randrange(2):
        break
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
  corpus.curate(metadata, out, ONE)
  assert corpus.contents(out) == corpus.contents(made[0])
  assert not (out / '.work').exists()


def test_a_finished_curation_is_not_made_again(metadata, made):
  out, result = made
  times = {x: x.stat().st_mtime_ns for x in out.iterdir()}
  assert corpus.curate(metadata, out, ONE) == result
  assert times == {x: x.stat().st_mtime_ns for x in out.iterdir()}
  with pytest.raises(UsageError, match='made with another per_query'):
    corpus.curate(metadata, out, ONE, per_query=41)


def test_a_collection_of_which_a_file_has_gone_is_made_again(
  metadata, made, tmp_path
):
  out = tmp_path / 'out'
  shutil.copytree(made[0], out)
  (out / made[1]['files'][0]).unlink()
  corpus.curate(metadata, out, ONE)
  assert corpus.contents(out) == corpus.contents(made[0])
  (out / 'curation.json').write_text('{}')
  with pytest.raises(FailureError, match="the field 'settings' is missing"):
    corpus.curate(metadata, out, ONE)


def test_another_seed_draws_other_pairs_and_the_same_numbers(
  metadata, made, tmp_path
):
  out = tmp_path / 'out'
  corpus.curate(metadata, out, ONE, seed=1)
  one, other = corpus.read(made[0]), corpus.read(out)
  assert set(one['url'].to_pylist()) != set(other['url'].to_pylist())
  assert corpus.counts(one, 'queries') == corpus.counts(other, 'queries')


def test_sampling_draws_about_as_many_for_each_query(metadata, tmp_path):
  out = tmp_path / 'out'
  corpus.curate(metadata, out, ONE, balance='sample')
  rows = pq.read_table(out / 'queries.parquet').to_pylist()
  frequent = [x for x in rows if x['matches'] > corpus.PER_QUERY]
  chosen = [x['chosen'] for x in frequent]
  assert np.mean(chosen) == pytest.approx(corpus.PER_QUERY, abs=5)
  assert len(set(chosen)) > 3  # by chance, and not to a number
  assert all(x['chosen'] == x['matches'] for x in rows if x not in frequent)


def test_the_order_of_rows_changes_no_choice(metadata, made, tmp_path):
  table = pa.concat_tables(
    pq.read_table(metadata / f'{x}.parquet') for x in 'ab'
  )
  mixed = tmp_path / 'mixed'
  mixed.mkdir()
  order = np.random.default_rng(0).permutation(len(table))
  pq.write_table(table.take(order), mixed / 'all.parquet')
  (mixed / 'queries.txt').write_bytes((metadata / 'queries.txt').read_bytes())
  corpus.curate(mixed, tmp_path / 'out', ONE)

  def pairs(out):
    return sorted(map(str, corpus.read(out).to_pylist()))

  assert pairs(tmp_path / 'out') == pairs(made[0])


@pytest.mark.parametrize('balance', ['cap', 'sample'])
def test_the_same_corpus_in_another_folder_gives_the_same_pairs(
  balance, tmp_path
):
  def pairs(folder):
    for part in ('one', 'two'):
      (folder / part).mkdir(parents=True)
      words = ['cat' if i % 3 else 'dog' for i in range(150)]
      table = pa.table(
        {
          'image': [f'images/{i}.jpg' for i in range(150)],
          'caption': [f'{part} {x}' for x in words],
        }
      )
      pq.write_table(table, folder / part / 'pairs.parquet')
    (folder / 'queries.txt').write_text('cat\ndog')
    corpus.curate(folder, folder / 'out', ONE, balance=balance)
    table = corpus.read(folder / 'out').drop_columns('image')
    images = corpus.read(folder / 'out')['image'].to_pylist()
    return table, [x.removeprefix(f'{folder}/') for x in images]

  assert pairs(tmp_path / 'here') == pairs(tmp_path / 'far' / 'away')


def test_rows_whose_id_is_missing_are_drawn_one_by_one(tmp_path):
  table = pa.table(
    {
      'text': ['a cat'] * 100,
      'url': [str(i) for i in range(100)],
      'uid': pa.array([None] * 100, pa.string()),
    }
  )
  pq.write_table(table, tmp_path / 'pairs.parquet')
  (tmp_path / 'queries.txt').write_text('cat')
  result = corpus.curate(tmp_path, tmp_path / 'out', ONE)
  assert result['rows_out'] == corpus.PER_QUERY


def test_a_remote_collection_leaves_no_work_behind(metadata, made, tmp_path):
  out = f'memory://{tmp_path.name}/curated'
  result = corpus.curate(metadata, out, ONE)
  assert result['files'] == made[1]['files']
  names = storage.list_folder(out)
  assert sorted(names) == sorted(corpus.contents(made[0]))
  assert corpus.curate(metadata, out, ONE) == result


def test_equal_ids_stay_below_the_cap(tmp_path):
  table = pa.table(
    {
      'text': ['a cat'] * 100,
      'url': [str(i) for i in range(100)],
      'uid': [str(i // 30) for i in range(100)],
    }
  )
  pq.write_table(table, tmp_path / 'pairs.parquet')
  (tmp_path / 'queries.txt').write_text('cat')
  result = corpus.curate(tmp_path, tmp_path / 'out', ONE)
  assert result['rows_out'] in (30, 40)  # whole groups of one id


def test_other_files_and_damaged_ones_are_named(metadata, tmp_path):
  folder = tmp_path / 'metadata'
  corpus.write(folder, 300)
  (folder / 'c.parquet').write_bytes(b'PAR1 no more')
  path = folder / 'b.parquet'
  content = bytearray(path.read_bytes())
  content[40:400] = bytes(360)  # pages of the first row group
  path.write_bytes(content)
  result = corpus.curate(folder, tmp_path / 'out', ONE)
  assert len(result['corrupt']) == 2
  assert any('c.parquet' in name for name in result['corrupt'])
  assert any('b.parquet, row group 0' in name for name in result['corrupt'])
  assert result['steps'][0]['dropped']['unreadable'] == 150
  for most in (0, 1):  # of all tasks together
    with pytest.raises(FailureError, match=f'over --max_corrupt={most} files'):
      corpus.curate(folder, tmp_path / f'other{most}', ONE, max_corrupt=most)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').touch()
  with pytest.raises(UsageError, match='has x already'):
    corpus.curate(folder, tmp_path / 'full', ONE)


def test_copies_in_other_files_are_dropped_from_a_small_collection(tmp_path):
  for name, url in (('a', 'one'), ('b', 'one'), ('c', 'two')):
    vector = [1.0, 0.0] if name != 'b' else [0.0, 1.0]
    table = pa.table({'url': [url], 'caption': ['text'], 'embedding': [vector]})
    pq.write_table(table, tmp_path / f'{name}.parquet')
  out = tmp_path / 'out'
  result = pipeline.curate(
    Settings((str(tmp_path),), near=0.9),
    str(out),
    engine=ONE,
    helpers=pipeline.Helpers(find_copies=find_near_copies),
  )
  assert [x['dropped'] for x in result['steps'][-2:]] == [
    {'the same image and text': 1}, {'a cosine from 0.9': 1}
  ]  # fmt: skip
  assert corpus.read(out)['url'].to_pylist() == ['one']


def test_near_copies_are_dropped_in_blocks(tmp_path):
  """Of groups of near vectors the first row of each stays."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(40, 16))
  vectors = np.repeat(centres, 5, axis=0)
  vectors += 0.01 * rng.normal(size=vectors.shape)
  rows = rng.permutation(200)
  table = pa.table(
    {
      'caption': [f'text {i}' for i in range(200)],
      'embedding': pa.array(
        [*vectors[rows].tolist()[:-1], None], pa.list_(pa.float32())
      ),
    }
  )
  pq.write_table(table, tmp_path / 'x.parquet')
  groups = rows // 5
  first = {int(np.flatnonzero(groups[:-1] == x)[0]) for x in range(40)}
  result = pipeline.curate(
    Settings((str(tmp_path),), near=0.95, cluster_rows=25),
    str(tmp_path / 'out'),
    engine=ONE,
    helpers=pipeline.Helpers(find_copies=find_near_copies),
  )
  table = corpus.read(tmp_path / 'out')
  assert set(table['caption'].to_pylist()) == {f'text {i}' for i in first}
  dropped = {x['step']: x['dropped'] for x in result['steps']}
  assert dropped['embedding'] == {'no embedding': 1}
  assert dropped['near copies'] == {'a cosine from 0.95': 159}


def test_images_of_the_same_bytes_are_copies(tmp_path):
  table = pa.table(
    {
      'url': ['a', 'b', 'c', 'd'],
      'caption': ['one', 'two', 'three', 'four'],
      'sha256': ['00' * 32, '11' * 32, '00' * 32, None],
    }
  )
  pq.write_table(table, tmp_path / 'x.parquet')
  settings = Settings((str(tmp_path),), copies='images')
  pipeline.curate(settings, str(tmp_path / 'out'), engine=ONE)
  table = corpus.read(tmp_path / 'out')
  assert sorted(table['url'].to_pylist()) == ['a', 'b', 'd']
  assert table.schema.names == ['url', 'caption', 'sha256']


def test_what_is_no_sha256_makes_no_copies(tmp_path):
  hashes = ['', '', ' ', 'ab', 'ab', 'ab' * 16, 'ab' * 16, 'no hash', None]
  urls = [f'http://a/{i}' for i in range(len(hashes))]
  table = pa.table({'url': urls, 'caption': urls, 'sha256': hashes})
  pq.write_table(table, tmp_path / 'x.parquet')
  settings = Settings((str(tmp_path),), copies='images')
  pipeline.curate(settings, str(tmp_path / 'out'), engine=ONE)
  kept = corpus.read(tmp_path / 'out')['url'].to_pylist()
  assert sorted(kept) == urls


def test_paths_beside_missing_bytes_are_those_of_their_folders(tmp_path):
  for part in ('one', 'two'):
    (tmp_path / 'in' / part).mkdir(parents=True)
    images = [
      {'bytes': None, 'path': 'a.png'},
      {'bytes': b'content', 'path': 'b.png'},
      None,
    ]
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    table = pa.table(
      {'image': pa.array(images, kind), 'caption': ['a', 'b', 'c']}
    )
    pq.write_table(table, tmp_path / 'in' / part / 'pairs.parquet')
  settings = Settings((str(tmp_path / 'in'),))
  pipeline.curate(settings, str(tmp_path / 'out'), engine=ONE)
  rows = corpus.read(tmp_path / 'out').sort_by('caption').to_pylist()
  assert sorted(row['image']['path'] for row in rows[:2]) == [
    f'{tmp_path}/in/{part}/a.png' for part in ('one', 'two')
  ]
  # The same bytes, and no image, with the same text: copies.
  assert [row['image'] for row in rows[2:]] == images[1:]


def test_dictionaries_empty_files_and_empty_batches_are_no_obstacle(tmp_path):
  table = pa.table(
    {
      'caption': pa.array(['one', 'two', 'one', None]).dictionary_encode(),
      'kind': pa.array(['a', 'b', 'a', 'c']).dictionary_encode(),
      'embedding': pa.array([None] * 4, pa.list_(pa.float32(), 3)),
    }
  )
  pq.write_table(table, tmp_path / 'x.parquet', row_group_size=2)
  pq.write_table(table.slice(0, 0), tmp_path / 'y.parquet')
  out = tmp_path / 'out'
  result = pipeline.curate(Settings((str(tmp_path),)), str(out), engine=ONE)
  assert result['rows_out'] == 2
  assert corpus.read(out)['kind'].to_pylist() in (['a', 'b'], ['b', 'a'])
  result = pipeline.curate(
    Settings((str(tmp_path / 'x.parquet'),), near=0.9),
    str(tmp_path / 'none'),
    engine=ONE,
    helpers=pipeline.Helpers(find_copies=find_near_copies),
  )
  assert result['rows_out'] == 0
  with pytest.raises(UsageError, match='no row in'):
    pipeline.curate(
      Settings((str(tmp_path / 'y.parquet'),)), str(tmp_path / 'z'), engine=ONE
    )
