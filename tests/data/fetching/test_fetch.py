"""Lists of URLs on a loopback server become shards."""

import gzip
import hashlib
import io
import itertools
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import zlib

import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_jax.data.fetching import addresses, client
from clip_jax.data.fetching.client import Limits
from clip_jax.data.fetching.fetch import Fetch, describe, fetch_lists
from clip_jax.data.fetching.resize import Resizing
from clip_jax.data.prepare.engine import Engine
from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from tests.data.fetching import server as web
from tests.data.fetching.server import png, serving

IMAGE = png()
FAST = Limits(allow_private=True, first_delay=0.01, timeout=20.0)


def bomb():
  """A PNG of 3,600 megapixels in a few bytes."""

  def chunk(kind, data):
    checksum = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + checksum

  header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(bytes(1000)))
    + chunk(b'IEND', b'')
  )


ONE = Engine(workers=1)


def fetch(
  tmp_path, urls, limits=FAST, engine=ONE, *, retry_failed=False, **options
):
  """Fetches URLs with captions; returns the summary and the rows."""
  rows = [
    {'url': url, 'caption': f'caption {i}', 'score': i / 2}
    for i, url in enumerate(urls)
  ]
  path = tmp_path / 'urls.jsonl'
  if not path.exists():
    path.write_text('\n'.join(json.dumps(row) for row in rows))
  out = str(tmp_path / 'out')
  settings = Fetch(limits=limits, **options)
  summary = fetch_lists(
    [str(path)], out, settings, retry_failed=retry_failed, engine=engine
  )
  tables = [
    pq.read_table(x) for x in sorted((tmp_path / 'out').glob('0*.parquet'))
  ]
  return summary, [row for table in tables for row in table.to_pylist()]


def members(path):
  with tarfile.open(path) as tar:
    return {x.name: tar.extractfile(x).read() for x in tar.getmembers()}


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize(
  ('answer', 'status', 'message'),
  [
    (web.good(IMAGE), 'success', None),
    (web.good(IMAGE, Content_Type='text/html'), 'success', None),
    (web.good(gzip.compress(IMAGE), Content_Encoding='gzip'), 'success', None),
    (web.good(zlib.compress(IMAGE), Content_Encoding='deflate'), 'success',
     None),
    (web.in_turn(web.status(500), web.status(503), web.good(IMAGE)), 'success',
     None),
    (web.in_turn(web.status(429, Retry_After='0'), web.good(IMAGE)), 'success',
     None),
    (web.in_turn(web.truncated(IMAGE), web.good(IMAGE)), 'success', None),
    (web.in_turn(web.closed, web.good(IMAGE)), 'success', None),
    (web.good(IMAGE, X_Robots_Tag='otherbot: noai'), 'success', None),
    (web.status(404), 'failed_to_download', 'HTTP 404'),
    (web.status(500), 'failed_to_download', 'HTTP 500'),
    (web.status(204), 'failed_to_download', 'HTTP 204'),
    (web.truncated(IMAGE), 'failed_to_download', 'truncated answer'),
    (web.closed, 'failed_to_download', 'connection lost'),
    (web.good(b''), 'failed_to_download', 'empty answer'),
    (web.endless, 'failed_to_download', 'too many bytes: over 1,000,000'),
    (web.endless_headers, 'failed_to_download', 'not HTTP: '),
    (web.no_http, 'failed_to_download', 'not HTTP: '),
    (lambda handler: handler.send(IMAGE, length=10**15), 'failed_to_download',
     'too many bytes: 1,000,000,000,000,000 announced'),
    (web.good(IMAGE, Content_Encoding='br'), 'failed_to_download',
     'unknown Content-Encoding: br'),
    (web.good(IMAGE, Content_Encoding='gzip'), 'failed_to_download',
     'damaged Content-Encoding'),
    (web.good(IMAGE, X_Robots_Tag='nofollow, NoAI'), 'failed_to_download',
     'disallowed by X-Robots-Tag: noai'),
    (web.redirect('/good'), 'success', None),
    (web.redirect('/noai'), 'failed_to_download',
     'disallowed by X-Robots-Tag: noimageai'),
    (web.redirect('/hidden/x'), 'failed_to_download',
     'disallowed by robots.txt: '),
    (web.redirect('/it'), 'failed_to_download', 'redirect loop: '),
    (web.redirect('file:///etc/passwd'), 'failed_to_download',
     'neither http nor https: file:'),
    (web.redirect('http://[::1'), 'failed_to_download',
     'redirected to no URL: '),
    (web.redirect('/6'), 'success', None),
    (web.redirect('/7'), 'failed_to_download', 'too many redirects: over 5'),
    (web.good(b'<!DOCTYPE html><p>no', Content_Type='image/png'),
     'failed_to_resize', 'HTML, not an image'),
    (web.good(b'some text'), 'failed_to_resize', 'not an image'),
    (web.good(IMAGE[:200]), 'failed_to_resize', 'damaged image: '),
    (web.good(bomb()), 'failed_to_resize', 'too large: 60,000 x 60,000'),
  ],
)  # fmt: skip
def test_an_answer_and_what_becomes_of_it(tmp_path, answer, status, message):
  others = {
    '/good': web.good(IMAGE),
    '/noai': web.good(IMAGE, X_Robots_Tag='noimageai'),
    '/robots.txt': web.good(b'User-agent: *\nDisallow: /hidden/'),
    '/3': web.redirect('/good'),
    **{f'/{i}': web.redirect(f'/{i - 1}', 301) for i in range(4, 8)},
  }
  with serving({'/it': answer, **others}) as server:
    limits = Limits(allow_private=True, first_delay=0.01, max_bytes=10**6)
    _, [row] = fetch(tmp_path, [server.url('/it')], limits)
  assert row['status'] == status, row
  assert (row['error_message'] or '').startswith(message or '')
  if status == 'success':
    assert row['sha256'] == hashlib.sha256(IMAGE).hexdigest()
    assert (row['width'], row['original_height']) == (24, 24)
    assert members(tmp_path / 'out/00000.tar')['000000000.png'] == IMAGE


@pytest.mark.parametrize(
  ('url', 'message'),
  [
    ('ftp://a/b', 'neither http nor https'), ('', 'no URL in its row'),
    ('data:image/png;base64,x', 'neither http'), ('http://[::1', 'not a URL'),
    ('http://', 'not a URL'), ('/etc/passwd', 'neither http nor https'),
    ('http://127.0.0.1:1/a', 'connection refused'),
    ('http://127.0.0.1:99999/a', 'not a URL'),
    ('http://a..b/c', 'not a URL'), ('http://a/' + 'b' * 9999, 'too long'),
    ('http://2130706433/', 'not a URL'),
  ],
)  # fmt: skip
def test_urls_that_lead_nowhere(tmp_path, url, message):
  _, [row] = fetch(tmp_path, [url])
  assert row['status'] == 'failed_to_download'
  assert row['error_message'].startswith(message)


def test_gigabytes_of_zeros_are_not_unpacked(tmp_path):
  with serving({'/it': web.gzip_bomb}) as server:
    _, [row] = fetch(tmp_path, [server.url('/it')])
  assert row['error_message'].startswith('too many bytes: over 33,554,432')


@pytest.mark.parametrize('answer', [web.stalled(IMAGE), web.silent])
def test_an_answer_that_does_not_end_is_given_up(tmp_path, answer):
  limits = Limits(allow_private=True, timeout=0.3, retries=1, first_delay=0.0)
  with serving({'/it': answer}) as server:
    _, [row] = fetch(tmp_path, [server.url('/it')], limits)
    assert server.asked['/it'] == 2
  assert row['error_message'] == 'timed out'


# ---------------------------------------------------------------- addresses


def test_this_machine_is_refused_by_address_name_and_redirect(
  tmp_path, monkeypatch
):
  with serving({}, web.good(IMAGE)) as server:
    port = server.server_address[1]
    urls = [
      server.url('/a'), f'http://localhost:{port}/b',
      f'http://[::ffff:127.0.0.1]:{port}/c', f'http://0x7f000001:{port}/d',
      'http://169.254.169.254/latest/meta-data', f'http://0.0.0.0:{port}/',
    ]  # fmt: skip
    summary, rows = fetch(tmp_path, urls, Limits())
    assert not server.asked
  assert summary['reasons'] == {'not a public address': len(urls)}
  assert 'allow_private' in describe(summary)
  assert [row['status'] for row in rows] == ['failed_to_download'] * len(urls)


def test_a_redirect_into_the_private_network_is_refused(tmp_path, monkeypatch):
  """127.0.0.2 stands for the private network, 127.0.0.1 for the internet."""

  def only_first(info):
    if info[4][0] != '127.0.0.1':
      raise addresses.AddressRefusedError('it is not a public address')
    return socket.socket(*info[:3])

  monkeypatch.setattr(client, 'public_socket', only_first)
  with serving({}, web.good(IMAGE)) as server:
    port = server.server_address[1]
    server.answers['/it'] = web.redirect(f'http://127.0.0.2:{port}/good')
    urls = [server.url('/good'), server.url('/it')]
    limits = Limits(first_delay=0.0)
    _, rows = fetch(tmp_path, urls, limits)
    assert server.asked['/good'] == 1
  assert [row['error_message'] for row in rows] == [
    None, 'not a public address: it is not a public address'
  ]  # fmt: skip


# ------------------------------------------------------------------- robots


@pytest.mark.parametrize(
  ('robots', 'message', 'asked'),
  [
    (web.status(404), None, 1), (web.status(403), None, 1),
    (web.good(b'User-agent: *\nDisallow: /'), 'disallowed by robots.txt', 1),
    (web.good(b'User-agent: other\nDisallow: /'), None, 1),
    (web.good(b'User-agent: clip-jax\nDisallow: /'),
     'disallowed by robots.txt', 1),
    (web.status(500), 'robots.txt is unavailable: HTTP 500', 3),
    (web.in_turn(web.status(500), web.status(404)), None, 2),
    (web.redirect('/robots.txt'), 'robots.txt is unavailable: redirect', 1),
    (web.redirect('/robots2.txt'), 'disallowed by robots.txt', 1),
    (web.good(b'#' * 600_000 + b'\nUser-agent: *\nDisallow: /'), None, 1),
  ],
)  # fmt: skip
def test_robots_txt_is_asked_for_once_and_obeyed(
  tmp_path, robots, message, asked
):
  answers = {
    '/robots.txt': robots,
    '/robots2.txt': web.good(b'User-agent: *\nDisallow: /'),
  }
  with serving(answers, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(4)]
    _, rows = fetch(tmp_path, urls)
    assert server.asked['/robots.txt'] == asked
    assert (server.asked['/0'] == 0) == (message is not None)
  for row in rows:
    assert (row['error_message'] or 'None').startswith(str(message))


def test_robots_txt_knows_us_by_the_name_that_servers_get(tmp_path):
  answers = {'/robots.txt': web.good(b'User-agent: my-lab\nDisallow: /')}
  with serving(answers, web.good(IMAGE)) as server:
    limits = Limits(allow_private=True, user_agent='My-Lab/1.0 (me@lab.org)')
    summary, _ = fetch(tmp_path, [server.url('/it')], limits)
    assert server.agents == {'My-Lab/1.0 (me@lab.org)'}
  assert summary['reasons'] == {'disallowed by robots.txt': 1}


# -------------------------------------------------------------------- hosts


def test_a_host_gets_no_more_requests_at_a_time_than_it_should(tmp_path):
  with serving({}, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(40)]
    limits = Limits(allow_private=True, host_concurrency=3)
    summary, _ = fetch(tmp_path, urls, limits)
    assert summary['successes'] == 40
    assert server.most_active <= 3


def test_a_host_gets_no_more_requests_a_second_than_it_should(tmp_path):
  with serving({}, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(8)]
    limits = Limits(allow_private=True, host_rate=20)
    fetch(tmp_path, urls, limits)
    assert max(server.times) - min(server.times) >= 0.95 * 8 / 20


def test_retry_after_pauses_the_host_but_not_for_ever(tmp_path):
  busy = web.in_turn(web.status(429, Retry_After='86400'), web.good(IMAGE))
  with serving({'/it': busy}) as server:
    limits = Limits(allow_private=True, max_wait=0.3)
    summary, _ = fetch(tmp_path, [server.url('/it')], limits)
    assert server.times[-1] - server.times[-2] >= 0.25
  assert summary['successes'] == 1


def test_a_host_that_does_not_answer_is_left_alone(tmp_path):
  urls = [f'http://127.0.0.1:1/{i}' for i in range(200)]
  limits = Limits(allow_private=True, retries=0)
  summary, _ = fetch(tmp_path, urls, limits)
  assert set(summary['reasons']) <= {
    'connection refused', 'host does not answer'
  }  # fmt: skip


# ----------------------------------------------------------------- contents


def test_the_files_are_those_of_img2dataset(tmp_path):
  """As its version 1.47 writes them: names, keys, columns, words."""
  answers = {f'/{i}': web.good(png(i)) for i in range(25) if i % 5}
  with serving(answers) as server:
    urls = [server.url(f'/{i}') for i in range(25)]
    summary, rows = fetch(tmp_path, urls, shard_size=10)
  out = tmp_path / 'out'
  assert sorted(x.name for x in out.iterdir() if x.name[0] != '.') == [
    f'{i:05}{x}' for i in range(3) for x in ('.parquet', '.tar', '_stats.json')
  ]
  assert [row['key'] for row in rows] == [
    f'{i // 10 * 10 + i % 10:06}' for i in range(25)
  ]
  assert list(rows[0]) == [
    'url', 'caption', 'score', 'key', 'status', 'error_message', 'width',
    'height', 'original_width', 'original_height', 'sha256',
  ]  # fmt: skip
  tar = members(out / '00001.tar')
  assert list(tar)[:3] == ['000011.png', '000011.json', '000011.txt']
  assert tar['000011.png'] == png(11)
  assert tar['000011.txt'] == b'caption 11'
  assert json.loads(tar['000011.json']) == rows[11]
  stats = json.loads((out / '00000_stats.json').read_text())
  assert [stats[x] for x in ('count', 'successes', 'failed_to_download')] == [
    10, 8, 2
  ]  # fmt: skip
  assert stats['status_dict'] == {'success': 8, 'HTTP 404': 2}
  assert summary['urls'] == 25
  assert summary['successes'] == 20
  assert summary['reasons'] == {'HTTP 404': 5}
  assert summary['hosts'] == {'127.0.0.1': 5}
  assert describe(summary).splitlines()[1].split() == ['5', 'HTTP', '404']


def test_webdataset_and_our_source_read_the_shards(tmp_path):
  import webdataset

  with serving({}, web.good(IMAGE)) as server:
    fetch(tmp_path, [server.url(f'/{i}') for i in range(7)], shard_size=4)
  shards = sorted(str(x) for x in (tmp_path / 'out').glob('*.tar'))
  samples = list(
    webdataset.WebDataset(shards, shardshuffle=False).decode('rgb8')
  )
  assert [x['txt'] for x in samples] == [f'caption {i}' for i in range(7)]
  assert all(x['png'].shape == (24, 24, 3) for x in samples)
  source = open_source(f'wds:{tmp_path}/out/*.tar')
  assert [source[i]['caption'] for i in range(7)] == [
    [f'caption {i}'] for i in range(7)
  ]
  assert source[3]['image'] == IMAGE


def test_an_image_without_a_mark_of_its_format_is_read_back(tmp_path):
  from clip_jax.data.sources import open_source

  tga = io.BytesIO()
  Image.open(io.BytesIO(IMAGE)).convert('RGB').save(tga, 'TGA')
  with serving({}, web.good(tga.getvalue())) as server:
    fetch(tmp_path, [server.url('/a')])
  assert '000000000.tga' in members(tmp_path / 'out/00000.tar')
  source = open_source(f'wds:{tmp_path}/out/*.tar')
  assert source[0]['image'] == tga.getvalue()


def test_a_checksum_in_the_list_is_verified(tmp_path):
  digest = hashlib.sha256(IMAGE).hexdigest()
  with serving({}, web.good(IMAGE)) as server:
    rows = [
      {'url': server.url(f'/{i}'), 'sha256': x}
      for i, x in enumerate([digest, digest.upper(), 'f' * 64, '', None])
    ]
    path = tmp_path / 'urls.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    summary, rows = fetch(tmp_path, [])
  assert summary['reasons'] == {'sha256 differs': 1}
  assert [row['sha256'] for row in rows] == [digest] * 2 + [None] + [digest] * 2
  assert 'caption' not in rows[0]
  tar = members(tmp_path / 'out/00000.tar')
  assert not any(name.endswith('.txt') for name in tar)


@pytest.mark.parametrize(
  ('mode', 'sizes'),
  [
    ('no', [(24, 24), (100, 40), (40, 100)]),
    ('keep_ratio', [(24, 24), (80, 32), (32, 80)]),
    ('keep_ratio_largest', [(24, 24), (32, 13), (13, 32)]),
    ('center_crop', [(24, 24), (32, 32), (32, 32)]),
  ],
)  # fmt: skip
@pytest.mark.parametrize('image_format', ['jpg', 'png', 'webp'])
def test_larger_images_are_made_smaller(tmp_path, mode, sizes, image_format):
  old = [(24, 24), (100, 40), (40, 100)]
  answers = {f'/{i}': web.good(png(0, *x)) for i, x in enumerate(old)}
  resizing = Resizing(mode, 32, image_format, quality=80)
  with serving(answers) as server:
    urls = [server.url(path) for path in answers]
    _, rows = fetch(tmp_path, urls, resizing=resizing)
  tar = members(tmp_path / 'out/00000.tar')
  assert tar['000000000.png'] == png(0)  # what is small is kept as it came
  suffix = 'png' if mode == 'no' else image_format
  for row, before, after in zip(rows, old, sizes, strict=True):
    assert (row['original_width'], row['original_height']) == before
    assert (row['width'], row['height']) == after
  for row, size in list(zip(rows, sizes, strict=True))[1:]:
    image = Image.open(io.BytesIO(tar[f'{row["key"]}.{suffix}']))
    assert image.size == size


def test_sizes_that_are_refused(tmp_path):
  old = [(24, 24), (100, 40), (40, 90), (8, 8)]
  answers = {f'/{i}': web.good(png(0, *x)) for i, x in enumerate(old)}
  resizing = Resizing(min_side=20, max_aspect_ratio=2.4)
  with serving(answers) as server:
    urls = [server.url(path) for path in answers]
    summary, rows = fetch(tmp_path, urls, resizing=resizing)
  assert summary['failed_to_resize'] == 2
  assert [row['error_message'] for row in rows] == [
    None, 'too elongated: 100 x 40 pixels', None, 'too small: 8 x 8 pixels'
  ]  # fmt: skip


# ------------------------------------------------------------------ resuming


def test_only_shards_that_are_not_complete_are_fetched_again(tmp_path):
  with serving({}, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(12)]
    first, rows = fetch(tmp_path, urls, shard_size=4)
    server.asked.clear()
    (tmp_path / 'out/00001.tar').unlink()
    again, rows_again = fetch(tmp_path, urls, shard_size=4)
    asked = {path for path in server.asked if path != '/robots.txt'}
    assert asked == {f'/{i}' for i in range(4, 8)}
    assert again == first
    assert rows_again == rows
    with pytest.raises(UsageError, match='begun with shard_size 4'):
      fetch(tmp_path, urls, shard_size=5)
    with pytest.raises(UsageError, match='begun with resizing'):
      fetch(tmp_path, urls, shard_size=4, resizing=Resizing('keep_ratio'))
    (tmp_path / 'urls.jsonl').write_text('{"url": "http://a/b"}')
    with pytest.raises(UsageError, match='begun with'):
      fetch(tmp_path, urls, shard_size=4)


def test_shards_of_somebody_else_are_left_alone(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out/00000.tar').write_bytes(b'theirs')
  with pytest.raises(UsageError, match='data fetch did not write'):
    fetch(tmp_path, ['http://a/b'])
  assert (tmp_path / 'out/00000.tar').read_bytes() == b'theirs'


@pytest.mark.parametrize('shard_size', [1, 4])
def test_all_captions_of_a_url_are_trained_on(tmp_path, shard_size):
  """A .txt of any record would hide the .json of the others."""
  captions = ['one', ['two', 'zwei', None], [], None, ['four'], ['"five"']]
  with serving({}, web.good(IMAGE)) as server:
    rows = [
      {'url': server.url(f'/{i}'), 'caption': caption, 'score': i}
      for i, caption in enumerate(captions)
    ]
    lines = '\n'.join(map(json.dumps, rows))
    (tmp_path / 'urls.jsonl').write_text(lines)
    _, rows = fetch(tmp_path, [], shard_size=shard_size)
  assert [row['score'] for row in rows] == list(range(6))
  source = open_source(f'wds:{tmp_path}/out/*.tar')
  assert [source[i]['caption'] for i in range(6)] == [
    ['one'], ['two', 'zwei'], [], [], ['four'], ['"five"'],
  ]  # fmt: skip


def test_lists_of_one_caption_are_in_the_txt(tmp_path):
  with serving({}, web.good(IMAGE)) as server:
    line = {'url': server.url('/a'), 'caption': ['one']}
    (tmp_path / 'urls.jsonl').write_text(json.dumps(line))
    fetch(tmp_path, [])
  assert members(tmp_path / 'out/00000.tar')['000000000.txt'] == b'one'


def test_where_nothing_came_all_is_tried_again(tmp_path):
  with serving({}) as server:
    urls = [server.url(f'/{i}') for i in range(4)]
    assert fetch(tmp_path, urls)[0]['successes'] == 0
    server.other = web.good(IMAGE)
    assert fetch(tmp_path, urls)[0]['successes'] == 4


def test_urls_that_failed_are_asked_for_again_and_what_came_stays(tmp_path):
  with serving({'/1': web.status(404)}, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(12)]
    urls[6] = server.url('/hidden')
    server.answers['/hidden'] = web.good(b'no image')
    summary, _ = fetch(tmp_path, urls, shard_size=4)
    assert summary['successes'] == 10
    assert '--retry_failed' in describe(summary)
    server.answers.clear()
    server.asked.clear()
    assert fetch(tmp_path, urls, shard_size=4)[0] == summary
    assert not server.asked
    summary, rows = fetch(tmp_path, urls, shard_size=4, retry_failed=True)
    assert server.asked.keys() == {'/1', '/hidden', '/robots.txt'}
    assert summary['successes'] == 12
    assert not summary['reasons']
    (tmp_path / 'fresh').mkdir()
    _, fresh = fetch(tmp_path / 'fresh', urls, shard_size=4)
  assert rows == fresh
  for name in ('00000.tar', '00001.tar', '00002.tar'):
    again = (tmp_path / 'out' / name).read_bytes()
    assert again == (tmp_path / 'fresh/out' / name).read_bytes()


def test_a_retry_that_was_killed_keeps_what_its_files_say(tmp_path):
  with serving({'/1': web.status(404)}, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(4)]
    fetch(tmp_path, urls)
    server.asked.clear()
    # As a kill leaves a shard whose tar is new and whose table is not.
    (tmp_path / 'out/00000_stats.json').unlink()
    server.answers.clear()
    summary, _ = fetch(tmp_path, urls)
    assert server.asked.keys() == {'/1', '/robots.txt'}
  assert summary['successes'] == 4


COMMAND = """
import sys
from clip_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
  count = 60
  with serving({}) as server:
    gate = server.ended  # set at the end only: a short wait for each answer

    def slowly(handler):
      gate.wait(0.02)
      handler.send(png(int(handler.path[1:])))

    server.other = slowly
    lines = [
      json.dumps({'url': server.url(f'/{i}'), 'caption': str(i)})
      for i in range(count)
    ]
    path = tmp_path / 'urls.jsonl'
    path.write_text('\n'.join(lines))
    out = tmp_path / 'out'
    argv = [sys.executable, '-c', COMMAND, 'data', 'fetch', path, '--json',
            f'--out={out}', '--allow_private', '--shard_size=6',
            '--host_concurrency=2']  # fmt: skip
    for kill_at in itertools.count(8, 17):
      before = server.asked.total()
      process = subprocess.Popen(
        list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
      )
      while process.poll() is None and server.asked.total() - before < kill_at:
        gate.wait(0.005)
      if process.poll() is not None:
        break
      process.send_signal(signal.SIGKILL)
      process.wait()
    summary = json.loads(process.communicate()[0])
  assert summary['successes'] == count
  tables = [pq.read_table(x) for x in sorted(out.glob('0*.parquet'))]
  captions = [x for t in tables for x in t.column('caption').to_pylist()]
  assert captions == [str(i) for i in range(count)]
  content = [members(x) for x in sorted(out.glob('*.tar'))]
  images = [v for x in content for k, v in x.items() if k.endswith('.png')]
  assert images == [png(i) for i in range(count)]
  assert not [x for x in os.listdir(out) if x.endswith('.part')]


@pytest.mark.parametrize(
  'engine',
  [
    Engine(workers=2),
    pytest.param(Engine('beam', 2), marks=pytest.mark.engines),
    pytest.param(Engine('ray', 2), marks=pytest.mark.engines),
  ],
  ids=lambda engine: engine.name,
)
def test_processes_share_the_limits_of_a_host(tmp_path, engine):
  with serving({}, web.good(IMAGE)) as server:
    urls = [server.url(f'/{i}') for i in range(24)]
    limits = Limits(allow_private=True, host_concurrency=4)
    summary, _ = fetch(tmp_path, urls, limits, engine, shard_size=6)
    assert summary['successes'] == 24
    assert server.most_active <= 4
  assert math.isclose(summary['bytes'], 24 * len(IMAGE))
