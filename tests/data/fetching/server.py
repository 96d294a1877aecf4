"""A web server on loopback whose answers are good, slow, broken or hostile."""

import collections
import contextlib
import gzip
import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.data.images import make_image

Answer = Callable[['Handler'], None]


def png(seed: int = 0, width: int = 24, height: int = 24) -> bytes:
  """An image, as a server sends it."""
  buffer = io.BytesIO()
  make_image(seed, width, height).save(buffer, 'PNG')
  return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
  """Answers a path by the function that the test's table has for it."""

  protocol_version = 'HTTP/1.1'
  server: 'Server'

  def do_GET(self) -> None:
    path = self.path
    with self.server.counting:
      self.server.asked[path] += 1
      self.server.active += 1
      self.server.most_active = max(self.server.most_active, self.server.active)
      self.server.times.append(time.monotonic())
      self.server.agents.add(self.headers.get('User-Agent', ''))
    try:
      with contextlib.suppress(ConnectionError):
        answer = self.server.answers.get(path.partition('?')[0])
        if answer is None and path != '/robots.txt' and self.server.other:
          answer = self.server.other
        (answer or status(404))(self)
    finally:
      with self.server.counting:
        self.server.active -= 1

  def send(
    self,
    body: bytes = b'',
    code: int = 200,
    length: int | None = None,
    **headers: str,
  ) -> None:
    """Sends a whole answer; `length` may lie."""
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(body) if length is None
                                           else length))  # fmt: skip
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *args: object) -> None:
    """Says nothing."""


class Server(ThreadingHTTPServer):
  """Counts what it is asked for.

  Attributes:
    answers: path to answer; `other` is that of all other paths.
    asked: how often each path was asked for.
    most_active: the most requests that were open at a time.
    times: when requests came.
    agents: the robots that asked.
    ended: is set when the server closes, for answers that wait.
  """

  daemon_threads = True
  request_queue_size = 256

  def __init__(self, answers: dict[str, Answer], other: Answer | None = None):
    super().__init__(('127.0.0.1', 0), Handler)
    self.answers = answers
    self.other = other
    self.asked: collections.Counter[str] = collections.Counter()
    self.active = self.most_active = 0
    self.times: list[float] = []
    self.agents: set[str] = set()
    self.counting = threading.Lock()
    self.ended = threading.Event()

  def handle_error(
    self,
    request: socket.socket | tuple[bytes, socket.socket],
    client_address: object,
  ) -> None:
    """Prints an error of ours; a client that hangs up is none."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  def url(self, path: str) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}{path}'


@contextlib.contextmanager
def serving(
  answers: dict[str, Answer], other: Answer | None = None
) -> Iterator[Server]:
  """Runs a server in a thread."""
  server = Server(answers, other)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield server
  finally:
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


# ------------------------------------------------------------------- answers


def good(body: bytes, **headers: str) -> Answer:
  return lambda handler: handler.send(body, **headers)


def status(code: int, **headers: str) -> Answer:
  return lambda handler: handler.send(b'no', code, **headers)


def redirect(location: str, code: int = 302) -> Answer:
  return lambda handler: handler.send(b'', code, Location=location)


def truncated(body: bytes) -> Answer:
  """Half of a body that was announced in full."""

  def answer(handler: Handler) -> None:
    handler.send(body[: len(body) // 2], length=len(body))
    handler.close_connection = True

  return answer


def stalled(body: bytes) -> Answer:
  """Sends a byte now and then, and never ends."""

  def answer(handler: Handler) -> None:
    handler.send(body[:10], length=len(body))
    for byte in body[10:]:
      if handler.server.ended.wait(0.05):
        break
      handler.wfile.write(bytes([byte]))
      handler.wfile.flush()
    handler.close_connection = True

  return answer


def silent(handler: Handler) -> None:
  """Never answers."""
  handler.server.ended.wait()
  handler.close_connection = True


def closed(handler: Handler) -> None:
  """Closes the connection before any answer."""
  handler.close_connection = True


def endless(handler: Handler) -> None:
  """A body without end or announced length."""
  handler.send_response(200)
  handler.send_header('Connection', 'close')
  handler.end_headers()
  handler.close_connection = True
  while not handler.server.ended.is_set():
    handler.wfile.write(b'\x89PNG\r\n\x1a\n' * 8192)


def endless_headers(handler: Handler) -> None:
  handler.wfile.write(b'HTTP/1.1 200 OK\r\n')
  while not handler.server.ended.is_set():
    handler.wfile.write(b'X-More: and more\r\n' * 1000)


def no_http(handler: Handler) -> None:
  handler.wfile.write(b'\xff\xfe\x00 hello\r\n\r\n')
  handler.close_connection = True


def gzip_bomb(handler: Handler) -> None:
  """A gigabyte of zeros in a megabyte."""
  block = gzip.compress(bytes(2**27), 9)
  handler.send(block * 8, Content_Encoding='gzip')


def in_turn(*answers: Answer) -> Answer:
  """One answer after the other; the last one stays."""
  waiting = list(answers)
  lock = threading.Lock()

  def answer(handler: Handler) -> None:
    with lock:
      now = waiting.pop(0) if len(waiting) > 1 else waiting[0]
    now(handler)

  return answer
