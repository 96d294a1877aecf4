"""`clip-jax data fetch` as it is typed."""

import json

import pytest

from tests.data.fetching import server as web
from tests.data.fetching.server import png, serving


@pytest.fixture
def server():
  with serving({'/bad': web.status(404)}, web.good(png())) as server:
    yield server


def test_a_list_becomes_shards(clip_jax, server, tmp_path):
  urls = tmp_path / 'urls.txt'
  urls.write_text('\n'.join(server.url(x) for x in ('/a', '/bad', '/b')))
  call = ['data', 'fetch', urls, f'--out={tmp_path}/out', '--allow_private']
  result = clip_jax(*call)
  assert result.code == 0, result
  lines = result.out.splitlines()
  assert lines[0] == (
    '2 images of 3 URLs (66.7 %, 548 bytes) in 1 shard: '
    f'wds:{tmp_path}/out/*.tar'
  )
  assert lines[1].split() == ['1', 'HTTP', '404']
  assert lines[2] == (
    'failed most: HTTP 404, 1 of 1; hosts with the most failures: 127.0.0.1 1'
  )
  asked = server.asked.total()
  summary = clip_jax(*call, '--json').json
  assert server.asked.total() == asked
  assert summary['successes'] == 2
  assert summary['reasons'] == {'HTTP 404': 1}


def test_nothing_fetched_is_a_failure(clip_jax, server, tmp_path):
  urls = tmp_path / 'urls.txt'
  urls.write_text(server.url('/a'))
  call = ['data', 'fetch', urls, f'--out={tmp_path}/out', '--json']
  result = clip_jax(*call)
  assert result.code == 1
  assert json.loads(result.out)['reasons'] == {'not a public address': 1}
  assert result.err.splitlines() == [
    'error: no URL gave an image; failed most: not a public address '
    '(--allow_private permits them), 1 of 1; hosts with the most failures: '
    '127.0.0.1 1.'
  ]
  assert not server.asked


def test_wrong_calls_are_one_line(refused, tmp_path):
  urls = tmp_path / 'urls.csv'
  urls.write_text('image,caption\na,b\n')
  out = f'--out={tmp_path}/out'
  refused('data fetch what?', 'data', 'fetch', out)
  refused('no --out', 'data', 'fetch', urls)
  refused('matches no file', 'data', 'fetch', tmp_path / 'no.csv', out)
  refused('no column url', 'data', 'fetch', urls, out)
  refused("no column 'x'", 'data', 'fetch', urls, out, '--url_column=x')
  refused('is a file', 'data', 'fetch', urls, f'--out={urls}')
  refused('choose one of no, keep', 'data', 'fetch', urls, out, '--resize=x')
  refused('choose one of jpg', 'data', 'fetch', urls, out, '--image_format=x')
  refused('--timeout=0', 'data', 'fetch', urls, out, '--timeout=0')
  refused('--user_agent', 'data', 'fetch', urls, out, '--user_agent=/x')
  refused('choose one of local', 'data', 'fetch', urls, out, '--engine=x')
