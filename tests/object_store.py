"""Stand-ins for an object store: one for fsspec, and one for TensorStore."""

import contextlib
import http.server
import threading
import urllib.parse

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

_OBJECT = '/storage/v1/b/bucket/o/'


class Store(MemoryFileSystem):
  """Paths as those of gs://, and failures that are asked for."""

  protocol = ('gcs', 'gs')
  store: dict = {}  # noqa: RUF012
  pseudo_dirs: list = ['']  # noqa: RUF012
  failures: list = []  # noqa: RUF012

  def _open(self, path, mode='rb', **options):
    if 'w' in mode and self.failures:
      raise self.failures.pop()
    return super()._open(path, mode, **options)


@contextlib.contextmanager
def empty_store(monkeypatch):
  """Makes epath read and write gs:// paths in a store that begins empty."""
  fsspec.register_implementation('gcs', Store, clobber=True)
  monkeypatch.setattr(Store, 'store', {})
  monkeypatch.setattr(Store, 'pseudo_dirs', [''])
  monkeypatch.setattr(Store, 'failures', [])
  Store.clear_instance_cache()
  yield Store
  Store.clear_instance_cache()


class _Objects(http.server.BaseHTTPRequestHandler):
  """Reads objects of gs://bucket from `Store`, as Google's JSON API does."""

  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    path = urllib.parse.urlsplit(self.path).path
    name = urllib.parse.unquote(path.removeprefix(_OBJECT))
    file = Store.store.get(f'gs://bucket/{name}')
    if file is None:
      self._answer(404, b'')
      return
    data = file.getvalue()
    if 'Range' not in self.headers:
      self._answer(200, data)
      return
    first, last = self.headers['Range'].removeprefix('bytes=').split('-')
    part = data[int(first) : int(last) + 1]
    end = int(first) + len(part) - 1
    self._answer(206, part, f'bytes {first}-{end}/{len(data)}')

  def _answer(self, code, data, content_range=''):
    self.send_response(code)
    self.send_header('Content-Length', str(len(data)))
    self.send_header('x-goog-generation', '1')
    if content_range:
      self.send_header('Content-Range', content_range)
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serve_to_tensorstore(monkeypatch):
  """Lets TensorStore read what the store has, too, from a server here."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Objects)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', url)
  monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
  yield
  server.shutdown()
  server.server_close()
