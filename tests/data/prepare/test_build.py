"""Shards of any data set: the same records, and the same bytes every time."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_jax.__main__ import main
from clip_jax.data import storage
from clip_jax.data.prepare.build import BuildJob, build
from clip_jax.data.prepare.engine import Engine
from clip_jax.data.prepare.image_settings import ImageSettings
from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError, UsageError
from tests.data.images import captioned_folder, make_image
from tests.data.stores import s3_server
from tests.waiting import until

LAYOUTS = ('arrayrecord', 'wds')
ONE = Engine('local', 1)
on_both_layouts = pytest.mark.parametrize('layout', LAYOUTS)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """600 images of other sizes, two broken, one turned, in three formats."""
  folder = captioned_folder(tmp_path_factory.mktemp('images'), 590)
  rng = np.random.default_rng(1)
  for number in range(10):
    name = f'x{number}'
    width, height = (int(x) for x in rng.integers(20, 90, 2))
    photo, suffix = (
      make_image(number, width, height),
      ('jpg', 'webp')[number % 2],
    )
    exif = Image.Exif()
    exif[0x0112] = 6 if number == 4 else 1
    exif[0x010F] = 'a maker'
    photo.save(folder / f'{name}.{suffix}', exif=exif, quality=80)
    (folder / f'{name}.txt').write_text(f'photo {number}, größer\n')
  (folder / '100.png').write_bytes((folder / '100.png').read_bytes()[:60])
  (folder / 'x3.webp').write_bytes(b'RIFF\x00\x00\x00\x00WEBPnothing')
  return folder


def make(spec, out, layout, engine=ONE, **settings):
  """Builds with small shards."""
  settings = {'shard_records': 250, 'max_corrupt': 9, **settings}
  captions = settings.pop('captions', ('caption',))
  job = BuildJob(str(spec), captions, str(out), layout, **settings)
  return build(job, engine=engine)


def spec_of(out, layout):
  return f'wds:{out}/*.tar' if layout == 'wds' else f'arrayrecord:{out}'


def read_all(spec, captions=('caption',)):
  """All sound records of a data set but for their ids."""
  source = open_source(spec, captions=captions)
  records = []
  for index in range(len(source)):
    try:
      record = source[index]
      Image.open(io.BytesIO(record['image'])).load()
    except Exception:
      continue
    records.append({k: v for k, v in record.items() if k != 'id'})
  return records


def contents(out):
  """All files by name, but for the index, which has the times of the tars."""
  files = pathlib.Path(out).rglob('*')
  return {
    str(x.relative_to(out)): x.read_bytes()
    for x in files
    if x.is_file() and 'clip_jax_index' not in x.parts
  }


@pytest.fixture(scope='module')
def built(images, tmp_path_factory):
  """Both layouts of the images."""
  folder = tmp_path_factory.mktemp('built')
  for layout in LAYOUTS:
    make(f'folder:{images}', folder / layout, layout)
  return folder


@on_both_layouts
def test_records_are_those_of_the_source_in_its_order(images, built, layout):
  records = read_all(spec_of(built / layout, layout))
  assert len(records) == 598
  assert records == read_all(f'folder:{images}')


def test_ids_are_kept(images, built):
  ids = list(_ids(f'folder:{images}'))
  ids.remove('100.png')
  ids.remove('x3.webp')
  assert list(_ids(f'arrayrecord:{built}/arrayrecord')) == ids
  tars = sorted((built / 'wds').glob('*.tar'))
  kept = []
  for path in tars:
    with tarfile.open(path) as tar:
      kept += [
        json.load(tar.extractfile(x))['id']
        for x in tar
        if x.name.endswith('.json')
      ]
  assert kept == ids


def _ids(spec):
  source = open_source(spec)
  return (source.id(i) for i in range(len(source)))


@on_both_layouts
def test_what_is_broken_is_dropped_with_its_reason(built, layout):
  lines = (built / layout / 'dropped.jsonl').read_text().splitlines()
  dropped = {x['id']: x['reason'] for x in map(json.loads, lines)}
  assert set(dropped) == {'100.png', 'x3.webp'}
  assert 'damaged image' in dropped['100.png']


def test_more_broken_records_than_the_limit_end_the_build(images, tmp_path):
  with pytest.raises(FailureError, match=r'over --max_corrupt=1 .* 100\.png: '):
    make(f'folder:{images}', tmp_path / 'x', 'wds', max_corrupt=1)
  # The same build goes on with another limit.
  built = make(f'folder:{images}', tmp_path / 'x', 'wds', max_corrupt=2)
  assert built.statistics['dropped'] == 2


def test_statistics_and_shards_count_the_same(built):
  for layout in LAYOUTS:
    counts = json.loads((built / layout / 'statistics.json').read_text())
    assert counts['records'] == 598 and counts['dropped'] == 2
    assert counts['shards'] == 3
    assert counts['image_formats'] == {'JPEG': 5, 'PNG': 589, 'WEBP': 4}
    assert counts['image_width']['median'] == 24
    assert counts['caption_characters']['min'] == len('picture 000')
    manifest = json.loads((built / layout / 'manifest.json').read_text())
    records = [x.get('records', 0) for x in manifest['files'].values()]
    assert sorted(records)[-3:] == [98, 250, 250]
    assert not (built / layout / '.stages').exists()


def test_tfds_reads_the_shards(built):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(built / 'arrayrecord'))
  data = builder.as_data_source('train')
  assert len(data) == builder.info.splits['train'].num_examples == 598
  assert data[2]['caption'] == b'picture 002'
  assert data[2]['image'].shape == (24, 24, 3)
  expected = np.asarray(make_image(2))
  assert np.array_equal(data[2]['image'], expected)


def test_webdataset_reads_the_tars(built):
  import webdataset

  urls = [str(x) for x in sorted((built / 'wds').glob('*.tar'))]
  data = webdataset.WebDataset(urls, shardshuffle=False).decode('pil')
  samples = list(data)
  assert len(samples) == 598
  assert samples[2]['txt'] == 'picture 002'
  assert np.array_equal(samples[2]['png'], make_image(2))
  assert samples[2]['json']['id'] == '002.png'
  assert samples[-1]['json']['caption'] == 'photo 9, größer'


def test_tar_lists_the_tars(built):
  tar = ['tar', 'tf', str(built / 'wds' / '000002.tar')]
  done = subprocess.run(tar, capture_output=True, text=True, check=True)
  names = done.stdout.splitlines()
  assert not done.stderr
  assert names[:3] == ['000000501.json', '000000501.png', '000000501.txt']
  assert len(names) == 3 * 98


def test_tars_have_no_times_and_no_owners(built):
  with tarfile.open(built / 'wds' / '000000.tar') as tar:
    for member in tar:
      assert (member.mtime, member.uid, member.uname) == (0, 0, '')


@on_both_layouts
@pytest.mark.parametrize(
  'engine',
  [
    Engine('local', 2),
    pytest.param(Engine('beam', 2), marks=pytest.mark.engines),
    pytest.param(Engine('ray', 2), marks=pytest.mark.engines),
  ],
  ids=lambda x: x.name,
)
def test_engines_and_workers_write_the_same_bytes(
  images, built, layout, engine, tmp_path
):
  out = tmp_path / layout
  make(f'folder:{images}', out, layout, engine)
  assert contents(out) == contents(built / layout)


@on_both_layouts
@pytest.mark.parametrize('bytes_', [100_000, 700_000])
def test_no_shard_is_over_its_bytes(images, layout, bytes_, tmp_path):
  make(
    f'folder:{images}',
    tmp_path / 'x',
    layout,
    shard_bytes=bytes_,
    shard_records=None,
  )
  sizes = [
    x.stat().st_size
    for x in (tmp_path / 'x').iterdir()
    if x.suffix == '.tar' or 'array_record' in x.name
  ]
  if layout == 'wds':
    assert max(sizes) <= bytes_
    assert min(sorted(sizes)[1:]) > bytes_ - 5_000  # all but the last are full
  else:
    assert max(sizes) <= max(bytes_, 3 * 2**16)
  assert read_all(spec_of(tmp_path / 'x', layout)) == read_all(
    f'folder:{images}'
  )


@pytest.mark.slow
@on_both_layouts
@pytest.mark.parametrize('stage', ['check', 'write'])
def test_a_killed_build_goes_on(images, built, layout, stage, tmp_path):
  out = tmp_path / 'x'
  marker = out / '.stages' / stage / '0000000.json'
  words = [
    'data', 'build', f'folder:{images}', f'--to={layout}', f'--out={out}',
    '--shard_records=250', '--max_corrupt=9', '--workers=2',
  ]  # fmt: skip
  command = [sys.executable, '-m', 'clip_jax', *words]
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  until(lambda: marker.exists() or process.poll() is not None)
  process.send_signal(signal.SIGKILL)
  process.wait()
  make(f'folder:{images}', out, layout)
  assert contents(out) == contents(built / layout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
  content = np.random.default_rng(0).bytes(2_000_000)
  image = io.BytesIO()
  make_image(0).save(image, 'PNG')
  tar = io.BytesIO()
  with tarfile.open(fileobj=tar, mode='w', format=tarfile.USTAR_FORMAT) as file:
    for number in range(20):
      for suffix, data in (('png', image.getvalue() + content), ('txt', b'x')):
        member = tarfile.TarInfo(f'{number:03}.{suffix}')
        member.size = len(data)
        file.addfile(member, io.BytesIO(data))
  peaks = []
  for shards in (1, 8):
    for number in range(shards):
      (tmp_path / f'{number}.tar').write_bytes(tar.getvalue())
    script = (
      'import sys\n'
      'from clip_jax.__main__ import main\n'
      'from tests.resident import resident_bytes\n'
      'assert main(sys.argv[1:]) == 0\n'
      'print(resident_bytes("VmHWM"))'
    )
    words = ['data', 'build', f'wds:{tmp_path}/*.tar', '--to=arrayrecord']
    words += [f'--out={tmp_path}/out-{shards}', '--workers=1']
    done = subprocess.run(
      [sys.executable, '-c', script, *words],
      capture_output=True,
      text=True,
      check=True,
    )
    peaks.append(int(done.stdout.split()[-1]))
  # 280 MB more data.
  assert peaks[1] < peaks[0] + 60 * 2**20, peaks


def test_a_finished_build_is_left_as_it_is(images, built, capsys):
  out = built / 'wds'
  before = {x: x.stat().st_mtime_ns for x in out.iterdir()}
  assert make(f'folder:{images}', out, 'wds').was_there
  assert {x: x.stat().st_mtime_ns for x in out.iterdir()} == before


def test_a_shard_that_has_gone_is_made_again(images, built, tmp_path):
  out = tmp_path / 'x'
  make(f'folder:{images}', out, 'wds')
  (out / '000001.tar').unlink()
  assert not make(f'folder:{images}', out, 'wds').was_there
  assert contents(out) == contents(built / 'wds')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'shard_records': 100}, 'shard_records 250, and it is now 100'),
    ({'image': ImageSettings(max_side=9)}, 'max_side null, and it is now 9'),
    ({'captions': ('path',)}, r'captions \["caption"\], and it is now \["path'),
  ],
)
def test_other_settings_are_refused(images, built, settings, message):
  with pytest.raises(UsageError, match=message):
    make(f'folder:{images}', built / 'wds', 'wds', **settings)


def test_a_changed_source_is_refused(tmp_path):
  folder = captioned_folder(tmp_path / 'images', 3)
  make(f'folder:{folder}', tmp_path / 'x', 'wds')
  (folder / '001.txt').write_text('another caption\n')
  with pytest.raises(UsageError, match='was begun with content '):
    make(f'folder:{folder}', tmp_path / 'x', 'wds')


def test_a_folder_with_other_files_is_refused(images, tmp_path):
  (tmp_path / 'mine.txt').touch()
  with pytest.raises(UsageError, match=r'holds other files, such as mine\.txt'):
    make(f'folder:{images}', tmp_path, 'wds')


@on_both_layouts
def test_a_folder_whose_name_is_no_utf8_is_built(layout, tmp_path):
  folder = captioned_folder(tmp_path / os.fsdecode(b'caf\xe9'), 3)
  for suffix in ('png', 'txt'):
    name = os.fsdecode(b'\xe9.') + suffix
    (folder / f'000.{suffix}').rename(folder / name)
  out = tmp_path / 'out'
  for was_there in (False, True):
    made = make(f'folder:{folder}', out, layout)
    assert made.was_there == was_there
    assert made.statistics['records'] == 3
  assert read_all(spec_of(out, layout)) == read_all(f'folder:{folder}')
  folder = captioned_folder(tmp_path / 'images', 2)
  for path in folder.glob('*.png'):
    path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(FailureError, match='no record is sound'):
    make(f'folder:{folder}', tmp_path / 'x', 'wds')


@on_both_layouts
def test_all_captions_are_kept_and_labels_with_their_names(layout, tmp_path):
  folder = tmp_path / 'images'
  for number, name in enumerate(('red_apple', 'pear', 'pear')):
    (folder / name).mkdir(parents=True, exist_ok=True)
    make_image(number).save(folder / name / f'{number}.png')
  make(f'folder:{folder}', tmp_path / 'classes', layout)
  source = open_source(spec_of(tmp_path / 'classes', layout))
  assert source.label_names == ('pear', 'red apple')
  assert [source[i]['label'] for i in range(3)] == [0, 0, 1]
  assert [source.captions(i) for i in range(3)] == [
    ['pear'], ['pear'], ['red apple'],
  ]  # fmt: skip
  captioned = captioned_folder(tmp_path / 'captions', 3)
  (captioned / '001.txt').write_text('one\ntwo\nthree\n')
  make(f'folder:{captioned}', tmp_path / 'captions-out', layout)
  records = read_all(spec_of(tmp_path / 'captions-out', layout))
  assert records == read_all(f'folder:{captioned}')
  assert records[1]['caption'] == ['one', 'two', 'three']


@on_both_layouts
def test_formats_without_a_mark_are_read_back(layout, tmp_path):
  rows = []
  for number, name in enumerate(['tga', 'pcx', 'msp', 'xbm']):
    path = tmp_path / f'{number}.{name}'
    image = make_image(number, 64, 48)
    image = image.convert('RGB' if number < 2 else '1')
    image.save(path)
    rows.append({'image': path.read_bytes(), 'caption': name})
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'pairs.parquet')
  spec = f'parquet:{tmp_path}/pairs.parquet'
  assert make(spec, tmp_path / 'out', layout).statistics['records'] == 4
  records = read_all(spec_of(tmp_path / 'out', layout))
  assert records == read_all(spec)
  assert len(records) == 4


@on_both_layouts
@pytest.mark.parametrize('store', ['memory', 's3'])
def test_shards_are_written_to_a_store(images, built, layout, store):
  with s3_server('bucket') if store == 's3' else contextlib.nullcontext():
    out = f'{store}://bucket/build-{layout}'
    # Only a server is the same store in all processes.
    engine = Engine('local', 2) if store == 's3' else ONE
    make(f'folder:{images}', out, layout, engine)
    for name, content in contents(built / layout).items():
      assert storage.read_all(f'{out}/{name}', 2**30) == content, name
    assert read_all(spec_of(out, layout)) == read_all(f'folder:{images}')
    assert make(f'folder:{images}', out, layout, engine).was_there


def call(capsys, *words):
  code = main(['data', 'build', *map(str, words)])
  captured = capsys.readouterr()
  assert 'Traceback' not in captured.err
  return code, captured.out, captured.err


def test_the_command_builds_and_verifies(images, tmp_path, capsys):
  out = tmp_path / 'x'
  words = f'folder:{images}', '--to=wds', f'--out={out}', '--shard_bytes=1MB'
  code, printed, _ = call(capsys, *words, '--workers=1')
  assert code == 0
  assert printed.startswith('dropped 100.png: damaged image: ')
  assert '598 records in 2 shards, ' in printed
  assert printed.endswith(f'use them as wds:{out}/{{000000..000001}}.tar\n')
  assert call(capsys, '--verify', f'--out={out}')[:2] == (
    0, f'4 files as in {out}/manifest.json\n',
  )  # fmt: skip
  shard = out / '000000.tar'
  content = bytearray(shard.read_bytes())
  content[700] ^= 1
  shard.write_bytes(content)
  (out / '000001.tar').unlink()
  code, printed, err = call(capsys, '--verify', f'--out={out}', '--json')
  assert code == 1
  assert json.loads(printed)['differing'] == [
    '000000.tar has another content', '000001.tar is missing',
  ]  # fmt: skip
  assert err.startswith(f'error: {out}: 2 of 4 files differ from the manifest')


@pytest.mark.parametrize('name', ['photos [2024]', 'photos #1', '{a,b}*?'])
def test_a_folder_whose_name_looks_like_a_pattern(name, tmp_path, capsys):
  folder = captioned_folder(tmp_path / 'images', 6)
  out = tmp_path / name
  words = f'folder:{folder}', '--to=wds', f'--out={out}', '--json'
  code, printed, _ = call(capsys, *words, '--shard_records=3', '--workers=1')
  assert code == 0
  records = read_all(f'folder:{folder}')
  for spec in (json.loads(printed)['use_as'], f'wds:{out}'):
    assert not open_source(spec).notices  # the index is found
    assert read_all(spec) == records


def test_the_command_prints_json(images, tmp_path, capsys):
  words = [f'folder:{images}', '--to=arrayrecord', f'--out={tmp_path}/x']
  _, printed, _ = call(capsys, *words, '--workers=1', '--json')
  result = json.loads(printed)
  assert result['use_as'] == f'arrayrecord:{tmp_path}/x'
  assert (result['records'], result['dropped']) == (598, 2)
  assert [x['id'] for x in result['dropped_records']] == ['100.png', 'x3.webp']


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ([], 'data build what?'),
    (['folder:x'], 'no --to: arrayrecord or wds'),
    (['folder:x', '--to=wds'], 'no --out'),
    (['folder:x', '--to=tar', '--out=o'], "--to='tar': choose one of arrayrec"),
    (['folder:x', '--to=wds', '--out=o'], 'x'),
    (['folder:.', '--to=wds', '--out=o', '--format=gif'], 'jpeg, png, webp'),
    (['folder:.', '--to=wds', '--out=o', '--quality=0'], 'use 1 to 100'),
    (
      ['folder:.', '--to=wds', '--out=o', '--shard_bytes=-1'],
      '500000, 256M',
    ),
    (['folder:.', '--to=wds', '--out=o', '--engine=x'], "--engine='x'"),
    (['folder:.', '--to=wds', '--out=o', '--beam_options=--x'], 'engine=beam'),
    (
      ['emoji', '--to=wds', '--out=o'],
      'shards of it name tfds:emoji#train',
    ),
    (['--verify'], 'no --out'),
    (['x', '--verify', '--out=o'], 'takes flags only'),
  ],
)
def test_wrong_calls_are_one_line(words, message, capsys):
  code, printed, err = call(capsys, *words)
  assert (code, printed) == (2, '')
  assert err.count('\n') == 1 and message in err
  assert not os.path.exists('o')
