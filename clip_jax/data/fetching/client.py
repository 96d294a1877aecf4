"""Fetches one URL at a time of many at once, and trusts no server.

Redirects are followed by hand: each hop is checked as the first URL was, by its
scheme, the address behind its name, the robots.txt of its host and its headers.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import random
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import aiohttp
import yarl

from clip_jax.data.fetching.addresses import public_socket
from clip_jax.data.fetching.failure import FetchError, failure_of
from clip_jax.data.fetching.hosts import Host, Hosts
from clip_jax.data.fetching.robots import (
  MAX_ROBOTS_BYTES,
  Robots,
  disallowing_directive,
)

T = TypeVar('T')

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# Answers that may be others a moment later.
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
# A body longer than this goes on in one of a few slots, so that many long
# bodies at a time do not fill the memory.
_SHORT_BODY = 2**20
_LONG_BODIES = 8
_LONGEST_URL = 8192
_NAME_LOOKUPS = 64  # at a time, as each takes a thread


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits on requests to the network and on the answers that are read.

  Attributes:
    concurrency: URLs at a time, all hosts together.
    host_concurrency, host_rate: requests at a time and a second of one host; a
      rate of 0 is any.
    connect_timeout: seconds to find and reach a host.
    timeout: seconds from the request to the last byte of an answer.
    retries: attempts after the first.
    first_delay: seconds before the second attempt; then the double each time.
    max_wait: seconds that a server's Retry-After is obeyed at the most.
    max_bytes: of a body, also when it is decompressed.
    user_agent: sent to servers; its first word, up to a slash, is the name that
      robots.txt knows us by.
    allow_private: whether addresses that are not public may be connected to.
  """

  concurrency: int = 128
  host_concurrency: int = 8
  host_rate: float | int = 0.0
  connect_timeout: float | int = 10.0
  timeout: float | int = 30.0
  retries: int = 2
  first_delay: float | int = 0.5
  max_wait: float | int = 60.0
  max_bytes: int = 32 * 2**20
  user_agent: str = 'clip-jax/0.1'
  allow_private: bool = False

  @property
  def agent(self) -> str:
    """Our product token in robots.txt and X-Robots-Tag."""
    return self.user_agent.partition('/')[0].split()[0].lower()


@dataclasses.dataclass(frozen=True)
class _Answer:
  """The answer to one request: where it leads to, or its body."""

  location: str = ''
  body: bytes = b''


class Client:
  """Fetches URLs within limits, in an `async with`."""

  def __init__(self, limits: Limits):
    self._limits = limits
    self._slots = asyncio.Semaphore(limits.concurrency)
    self._long_bodies = asyncio.Semaphore(_LONG_BODIES)
    self._hosts = Hosts(limits.host_concurrency, limits.host_rate)
    self._robots: dict[str, asyncio.Task[Robots]] = {}
    self._stack = contextlib.AsyncExitStack()

  async def __aenter__(self) -> 'Client':
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_NAME_LOOKUPS))
    allow_all = self._limits.allow_private
    connector = aiohttp.TCPConnector(
      limit=0,  # our own slots limit it
      ttl_dns_cache=300,
      socket_factory=None if allow_all else public_socket,
    )
    self._session = await self._stack.enter_async_context(
      aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # `_unpacker` decompresses an answer that is compressed all the same.
        headers={
          'User-Agent': self._limits.user_agent,
          'Accept': 'image/*,*/*;q=0.5',
          'Accept-Encoding': 'identity',
        },
        auto_decompress=False,
        raise_for_status=False,
        timeout=aiohttp.ClientTimeout(
          total=None, connect=self._limits.connect_timeout
        ),
      )
    )
    return self

  async def __aexit__(self, *exception: object) -> None:
    for task in self._robots.values():
      task.cancel()
    await self._stack.aclose()

  async def fetch(self, url: str, take: Callable[[bytes], Awaitable[T]]) -> T:
    """Fetches a URL, and returns what `take` makes of the body.

    Args:
      take: is called while the URL still counts as one of those at a time, so
        that no more bodies are in memory.
    Raises:
      FetchError: there is no body, or it may not be taken.
    """
    return await self._with_retries(lambda: self._follow(url, take))

  async def _with_retries(self, attempt: Callable[[], Awaitable[T]]) -> T:
    for number in range(self._limits.retries + 1):
      try:
        return await attempt()
      except FetchError as error:
        if not error.retry or number == self._limits.retries:
          raise
        if not error.wait:  # else the whole host pauses
          delay = self._limits.first_delay * 2**number
          await asyncio.sleep(delay * random.uniform(0.5, 1.5))
    raise AssertionError  # the last attempt returns or raises

  async def _follow(
    self, url: str, take: Callable[[bytes], Awaitable[T]] | None
  ) -> T:
    """Follows redirects, until there is a body.

    Args:
      take: see `fetch`; None is for robots.txt, which no robots.txt forbids.
    """
    seen: set[str] = set()
    for _ in range(MAX_REDIRECTS + 1):
      target = _check_url(url)
      if str(target) in seen:
        raise FetchError('redirect loop', str(target))
      seen.add(str(target))
      if take is not None:
        robots = await self._robots_of(target)
        if not robots.allows(str(target)):
          raise FetchError('disallowed by robots.txt', str(target))
      async with self._requesting(target) as host:
        answer = await self._request(target, host, for_robots=take is None)
        if not answer.location:
          if take is None:
            return answer.body  # type: ignore[return-value]
          return await take(answer.body)
      url = _join(target, answer.location)
    raise FetchError('too many redirects', f'over {MAX_REDIRECTS}')

  @contextlib.asynccontextmanager
  async def _requesting(self, url: yarl.URL) -> AsyncIterator[Host]:
    """Holds a slot of the URL's host, then one of all."""
    host = self._hosts[str(url.host)]
    # In this order: who waits for a host does not keep others from theirs.
    async with host.slot(), self._slots:
      yield host

  async def _robots_of(self, url: yarl.URL) -> Robots:
    """Returns the rules of a URL's host, which are fetched once.

    Raises:
      FetchError: the host does not answer, so that nothing is allowed.
    """
    origin = str(url.origin())
    if origin not in self._robots:
      self._robots[origin] = asyncio.create_task(self._fetch_robots(origin))
    # One row that ends early does not end it for the others.
    return await asyncio.shield(self._robots[origin])

  async def _fetch_robots(self, origin: str) -> Robots:
    try:
      body: bytes = await self._with_retries(
        lambda: self._follow(f'{origin}/robots.txt', None)
      )
    except FetchError as error:
      if error.reason.startswith('HTTP 4') and error.reason != 'HTTP 429':
        return Robots('', self._limits.agent)  # there is none
      if error.reason.startswith(('HTTP', 'redirect', 'too many')):
        raise FetchError('robots.txt is unavailable', str(error)) from None
      raise
    text = body.decode('utf-8', 'replace')
    return Robots(text, self._limits.agent)

  async def _request(
    self, url: yarl.URL, host: Host, *, for_robots: bool
  ) -> _Answer:
    """Asks once.

    Raises:
      FetchError: there is no answer that can be used.
    """
    clock = asyncio.timeout(self._limits.timeout)
    reached = False
    try:
      async with (
        clock,
        self._session.get(url, allow_redirects=False) as response,
      ):
        reached = True
        host.connected(True)
        return await self._read(response, clock, host, for_robots=for_robots)
    except FetchError:
      raise
    except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
      failure = failure_of(error)
      if not reached and isinstance(
        error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
      ):
        host.connected(False)
      raise failure from error

  async def _read(
    self,
    response: aiohttp.ClientResponse,
    clock: asyncio.Timeout,
    host: Host,
    *,
    for_robots: bool,
  ) -> _Answer:
    """Reads an answer whose headers are there."""
    status, headers = response.status, response.headers
    if not for_robots and (
      directive := disallowing_directive(
        headers.getall('X-Robots-Tag', []), self._limits.agent
      )
    ):
      raise FetchError('disallowed by X-Robots-Tag', directive)
    if status in _REDIRECTS and (location := headers.get('Location')):
      return _Answer(location=location)
    if status != 200:
      wait = 0.0
      if status in (429, 503):
        wait = _retry_after(headers.get('Retry-After', ''))
        wait = min(wait, self._limits.max_wait)
        host.pause(wait)
      retry = status in _TRY_AGAIN
      raise FetchError(f'HTTP {status}', retry=retry, wait=wait)
    limit = MAX_ROBOTS_BYTES if for_robots else self._limits.max_bytes
    body = await self._read_body(response, clock, limit, cut=for_robots)
    if not body and not for_robots:
      raise FetchError('empty answer')
    return _Answer(body=body)

  async def _read_body(
    self,
    response: aiohttp.ClientResponse,
    clock: asyncio.Timeout,
    limit: int,
    *,
    cut: bool,
  ) -> bytes:
    """Reads a body.

    Args:
      cut: whether a longer one is cut off at the limit, and is no failure.
    Raises:
      FetchError: it is over the limit, or packed as nothing here unpacks.
    """
    claimed = response.headers.get('Content-Length', '0')
    if not cut and claimed.isdecimal() and int(claimed) > limit:
      raise FetchError('too many bytes', f'{int(claimed):,} announced')
    unpack = _unpacker(response.headers.get('Content-Encoding', ''))
    body = bytearray()
    async with contextlib.AsyncExitStack() as long:
      is_long = False
      async for chunk in response.content.iter_any():
        body += unpack(chunk, limit + 1 - len(body))
        if len(body) > limit:
          if cut:
            break
          raise FetchError('too many bytes', f'over {limit:,}')
        if len(body) > _SHORT_BODY and not is_long:
          is_long = True
          await self._wait_for_slot(long, clock)
    return bytes(body[:limit])

  async def _wait_for_slot(
    self, stack: contextlib.AsyncExitStack, clock: asyncio.Timeout
  ) -> None:
    """Waits for a slot of long bodies; the clock stands still meanwhile."""
    loop = asyncio.get_running_loop()
    left = (clock.when() or 0) - loop.time()
    clock.reschedule(None)
    await stack.enter_async_context(self._long_bodies)
    clock.reschedule(loop.time() + left)


def _check_url(text: str) -> yarl.URL:
  """Returns a URL that may be asked for.

  Raises:
    FetchError: it is no URL, or of another scheme than http and https.
  """
  if len(text) > _LONGEST_URL:
    raise FetchError('too long a URL', f'{len(text):,} characters')
  try:
    url = yarl.URL(text.strip()).with_fragment(None)
    if url.scheme not in ('http', 'https'):
      raise FetchError('neither http nor https', text[:200])
    if not url.host or not url.raw_host:
      raise FetchError('not a URL', text[:200])
    _ = url.port
  except (ValueError, TypeError, UnicodeError):
    raise FetchError('not a URL', text[:200]) from None
  return url


def _join(base: yarl.URL, location: str) -> str:
  """Returns where a redirect leads to.

  Raises:
    FetchError: it is no URL.
  """
  try:
    return str(base.join(yarl.URL(location.strip())))
  except (ValueError, TypeError, UnicodeError):
    raise FetchError('redirected to no URL', location[:200]) from None


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
  """Returns a function (bytes, the most to return) that unpacks a body.

  Raises:
    FetchError: of an encoding that we did not ask for and do not know.
  """
  encoding = encoding.strip().lower()
  if encoding in ('', 'identity'):
    return lambda chunk, most: chunk[: max(most, 0)]
  if encoding not in ('gzip', 'x-gzip', 'deflate'):
    raise FetchError('unknown Content-Encoding', encoding[:50])
  # 32: zlib tells gzip from zlib by the header.
  unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)

  def unpack(chunk: bytes, most: int) -> bytes:
    return unpacker.decompress(chunk, max(most, 1))

  return unpack


def _retry_after(text: str) -> float:
  """Returns the seconds of a header Retry-After; 0 where it says nothing."""
  text = text.strip()
  if text.isdecimal():
    return float(text[:9])
  try:
    moment = email.utils.parsedate_to_datetime(text)
    return max(0.0, moment.timestamp() - time.time())
  except (ValueError, TypeError, OverflowError):
    return 0.0
