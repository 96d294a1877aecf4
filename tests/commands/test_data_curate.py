"""`clip-jax data curate` as it is typed."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tiny_run import write_run

NAMES = ['red', 'green', 'blue', 'grey']


@pytest.fixture
def images(tmp_path):
  """Metadata of local images with texture, one of them broken, one a copy."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(8):
    path = tmp_path / f'{i}.png'
    pixels = np.kron(
      rng.integers(0, 255, (8, 8, 3)), np.ones((8 + i, 8, 1), int)
    )
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    rows.append({'image': path.name, 'caption': f'a {NAMES[i % 4]} thing {i}'})
  (tmp_path / '7.png').write_bytes((tmp_path / '0.png').read_bytes())
  (tmp_path / '6.png').write_bytes(b'no image')
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'pairs.parquet')
  (tmp_path / 'queries.txt').write_text('\n'.join(NAMES))
  return tmp_path


def test_a_collection_is_made_and_printed(clip_jax, images):
  out, page = images / 'out', images / 'page.html'
  call = [
    'data', 'curate', images / 'pairs.parquet', f'--out={out}',
    f'--queries={images / "queries.txt"}', '--per_query=1', f'--html={page}',
    '--workers=1',
  ]  # fmt: skip
  result = clip_jax(*call)
  assert result.code == 0, result.err
  assert 'balance                     8 ->              4' in result.out
  assert '4 of 4 queries match, 4 of them over 1 pairs' in result.out
  assert f'4 pairs in 1 file: {out}' in result.out
  html = page.read_text()
  for text in ('The funnel', 'a red thing', 'chosen by no query', 'green'):
    assert text in html
  assert clip_jax(*call, '--json').json['rows_out'] == 4
  # The paths of images hold, though the collection is elsewhere.
  data = clip_jax('data', 'inspect', f'parquet:{out}/part-*.parquet', '--json')
  assert data.json['records'] == 4


@pytest.mark.parametrize('out', ['{}/out', 'memory://curated-by-a-command'])
def test_images_are_read_and_those_of_an_evaluation_dropped(
  clip_jax, images, out
):
  test = images / 'test'
  test.mkdir()
  Image.open(images / '1.png').resize((60, 70)).save(test / 'near.png')
  (test / 'same.png').write_bytes((images / '2.png').read_bytes())
  for name in ('near', 'same'):
    (test / f'{name}.txt').write_text(name)
  result = clip_jax(
    'data', 'curate', images / 'pairs.parquet', f'--out={out.format(images)}',
    '--read_images', f'--evaluation=folder:{test}', '--json', '--workers=1',
    '--min_side=64', '--copies=images',
  )  # fmt: skip
  assert result.code == 0, result.err
  dropped = {x['step']: x['dropped'] for x in result.json['steps']}
  assert dropped['image']['unreadable'] == 1
  assert dropped['evaluation'] == {
    'the same file': 1, 'a near perceptual hash': 1
  }  # fmt: skip
  assert dropped['image copies'] == {'the same bytes': 1}
  assert result.json['rows_out'] == 4
  assert 'left out' in result.err
  assert '6.png' in result.err


def test_a_test_set_that_has_changed_is_noticed(clip_jax, refused, images):
  test = images / 'test'
  test.mkdir()
  (test / '1.png').write_bytes((images / '1.png').read_bytes())
  (test / 'broken.png').write_bytes((images / '2.png').read_bytes()[:90])
  call = [
    'data', 'curate', images / 'pairs.parquet', f'--out={images / "out"}',
    '--read_images', f'--evaluation=folder:{test}', '--workers=1',
  ]  # fmt: skip
  result = clip_jax(*call, '--json')
  assert result.code == 0, result.err
  assert result.json['rows_out'] == 6
  assert f'left out --evaluation=folder:{test}, broken.png' in result.err
  assert clip_jax(*call, '--json').json == result.json
  (test / '3.png').write_bytes((images / '3.png').read_bytes())
  refused('made with another evaluation_content: name another', *call)


def test_a_run_that_has_a_newer_checkpoint_is_noticed(
  clip_jax, refused, images
):
  run = write_run(images / 'run', (7,))
  call = [
    'data', 'curate', images / 'pairs.parquet', f'--out={images / "out"}',
    f'--model={run}', '--workers=1',
  ]  # fmt: skip
  result = clip_jax(*call, '--json')
  assert result.code == 0, result.err
  assert clip_jax(*call, '--json').json == result.json
  write_run(run, (7, 9))
  refused('made with another model: name another folder', *call)


def test_a_model_scores_pairs_and_finds_near_copies(clip_jax, images, workdir):
  call = [
    'data', 'curate', images / 'pairs.parquet', f'--model={workdir}',
    '--workers=1', '--json',
  ]  # fmt: skip
  scored = clip_jax(*call, f'--out={images / "out"}')
  assert scored.code == 0, scored.err
  table = pq.read_table(images / 'out' / 'part-00000.parquet')
  scores = np.array(table['clip_score'].to_pylist())
  assert (np.abs(scores) <= 1.001).all()
  middle = float(np.median(scores))
  some = clip_jax(
    *call, f'--out={images / "some"}', f'--min_score={middle}', '--near=0.9999'
  ).json
  near = some['steps'][-1]
  assert near['step'] == 'near copies'
  assert near['in'] == sum(scores >= np.float32(middle))
  assert near['in'] - near['out'] <= 1  # 7.png is a copy of 0.png


def test_digests_of_a_column_are_compared_with_an_evaluation(clip_jax, images):
  digests = [
    hashlib.sha256((images / f'{i}.png').read_bytes()).hexdigest()
    for i in range(6)
  ]
  table = pa.table(
    {
      'url': [f'http://example.org/{i}' for i in range(6)],
      'text': ['word'] * 6,
      'sha256': digests,
    }
  )
  pq.write_table(table, images / 'urls.parquet')
  test = images / 'test'
  test.mkdir()
  (test / 'x.png').write_bytes((images / '3.png').read_bytes())
  (test / 'x.txt').write_text('x')
  result = clip_jax(
    'data', 'curate', images / 'urls.parquet', f'--out={images / "out"}',
    f'--evaluation=folder:{test}', '--json', '--workers=1',
  )  # fmt: skip
  assert result.code == 0, result.err
  assert result.json['rows_out'] == 5


def test_wrong_calls_are_refused(refused, images, tmp_path):
  pairs, out = images / 'pairs.parquet', f'--out={images / "out"}'
  refused('takes the metadata', 'data', 'curate', out)
  refused('no --out', 'data', 'curate', pairs)
  refused('is a file: name a folder', 'data', 'curate', pairs, f'--out={pairs}')
  refused('matches no file', 'data', 'curate', tmp_path / 'no', out)
  refused('--languages=xx: use all', 'data', 'curate', pairs, out,
          '--languages=en,xx')  # fmt: skip
  refused('needs --evaluation=SPEC', 'data', 'curate', pairs, out,
          '--evaluation_near=0.9')  # fmt: skip
  refused('needs --model=REF', 'data', 'curate', pairs, out,
          '--evaluation_near=0.9', '--evaluation=folder:x')  # fmt: skip
  refused("--engine='spark': choose one of", 'data', 'curate', pairs, out,
          '--engine=spark')  # fmt: skip
