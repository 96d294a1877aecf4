"""`clip-jax data index` as people call it."""

import json

import pytest

from clip_jax.__main__ import main
from clip_jax.data.sources import open_source
from tests.data.indexing.archives import archive, pairs


@pytest.fixture
def shards(tmp_path):
  folder = tmp_path / 'shards'
  folder.mkdir()
  for shard in range(3):
    (folder / f'{shard}.tar').write_bytes(archive(pairs(4, 10 * shard)))
  return folder


def index(capsys, *words):
  """The exit code, stdout and stderr."""
  code = main(['data', 'index', *map(str, words)])
  return code, *capsys.readouterr()


def test_it_prints_what_the_index_has(shards, capsys):
  spec = f'wds:{shards}/{{0..2}}.tar'
  code, out, err = index(capsys, spec, '--workers=1')
  assert (code, err) == (0, '')
  assert out == (
    '12 records (12 png, 12 txt) in 3 shards, 30.7 kB; index in '
    f'{shards}/clip_jax_index/0..2 (3 shards read)\n'
  )
  code, out, _ = index(capsys, spec, '--json')
  assert code == 0
  result = json.loads(out)
  assert (result['records'], result['shards_read']) == (12, 0)
  assert result['members'] == {'png': 12, 'txt': 12}


def test_damage_is_named_and_limited(shards, capsys):
  data = (shards / '1.tar').read_bytes()
  (shards / '1.tar').write_bytes(data[:4650])
  spec = f'wds:{shards}/*.tar'
  code, out, err = index(capsys, spec, '--max_corrupt=0', '--workers=1')
  assert (code, out) == (1, '')
  assert err == (
    'error: 1 damaged member, over --max_corrupt=0: 1.tar:0012.png@4096: the '
    'archive is cut off here. What was read is kept.\n'
  )
  code, out, _ = index(capsys, spec, '--workers=1')
  assert code == 0
  assert '  damaged: 1.tar:0012.png@4096: the archive is cut off here' in out
  result = json.loads(index(capsys, spec, '--json')[1])
  assert result['damaged_members'] == 1
  assert result['problems'] == {'the archive is cut off here': 1}


def test_of_two_indexes_the_one_of_present_shards_is_taken(shards, capsys):
  old, new = f'wds:{shards}/{{0..2}}.tar', f'wds:{shards}/*.tar'
  assert index(capsys, old, '--workers=1')[0] == 0
  # Of the same size, so that only the time tells; the other has grown.
  (shards / '0.tar').write_bytes(archive(pairs(4, 50)))
  (shards / '1.tar').write_bytes(archive(pairs(8, 10)))
  assert index(capsys, new, '--workers=1')[0] == 0
  code, out, _ = index(capsys, new, '--verify', '--workers=1')
  assert (code, out) == (
    0,
    f'3 shards as indexed in {shards}/clip_jax_index/shards\n',
  )
  (shards / '1.tar').write_bytes(archive(pairs(4, 10)))
  assert index(capsys, new, '--workers=1')[0] == 0
  source = open_source(new)
  assert source.id(0) == '0.tar:0050'
  assert source.notices == ()


def test_verify(shards, tmp_path, capsys):
  spec, out = f'wds:{shards}/*.tar', tmp_path / 'index'
  code, _, err = index(capsys, spec, '--verify')
  assert code == 2
  assert err.endswith(
    'no index beside the shards; without --verify it is made\n'
  )
  index(capsys, spec, f'--out={out}', '--workers=1')
  assert index(capsys, f'wds:{out}', '--verify', '--workers=1')[0] == 0
  (shards / '2.tar').write_bytes(archive(pairs(4, 21)))
  code, text, err = index(
    capsys, spec, f'--out={out}', '--verify', '--json', '--workers=1'
  )
  assert code == 1
  assert json.loads(text)['differing'] == ['2.tar']
  assert '1 of 3 shards differ from their index' in err


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ([], 'takes one SPEC'),
    (['csv:{}/x.csv'], 'only wds:PATTERN and parquet:PATTERN'),
    (['wds:{}/none*.tar'], 'matches no file'),
    (['wds:{}/*.tar', '--out={}'], 'has other files, such as 0.tar'),
  ],
)
def test_wrong_calls(shards, capsys, words, message):
  code, out, err = index(capsys, *(word.format(shards) for word in words))
  assert (code, out) == (2, '')
  assert err.count('\n') == 1
  assert message in err
