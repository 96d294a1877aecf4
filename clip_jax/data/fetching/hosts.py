"""Limits what is asked of one host: at a time, a second, and when it fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from clip_jax.data.fetching.failure import FetchError

# After so many connections in a row that fail, a host is not tried any more.
_MOST_FAILURES = 20


class Host:
  """One host: its slots, its rate, its pause."""

  def __init__(self, concurrency: int, rate: float | int):
    """Makes a host that was not asked yet.

    Args:
      concurrency: requests at a time.
      rate: requests a second; 0 is any.
    """
    self._slots = asyncio.Semaphore(concurrency)
    self._interval = 1 / rate if rate else 0.0
    self._next = 0.0
    self._failures = 0

  @contextlib.asynccontextmanager
  async def slot(self) -> AsyncIterator[None]:
    """Waits until the host may be asked, and holds one of its slots.

    Raises:
      FetchError: it does not answer any more.
    """
    async with self._slots:
      while True:
        if self._failures >= _MOST_FAILURES:
          raise FetchError(
            'host does not answer',
            f'{self._failures} connections failed in a row',
          )
        now = asyncio.get_running_loop().time()
        if now >= self._next:
          break
        await asyncio.sleep(self._next - now)
      self._next = now + self._interval
      yield

  def pause(self, seconds: float | int) -> None:
    """Lets nobody ask for a while, as the host wished."""
    now = asyncio.get_running_loop().time()
    self._next = max(self._next, now + seconds)

  def connected(self, success: bool) -> None:
    """Counts connections that failed in a row."""
    self._failures = 0 if success else self._failures + 1


class Hosts:
  """The hosts that were asked, by name."""

  def __init__(self, concurrency: int, rate: float | int):
    self._concurrency = concurrency
    self._rate = rate
    self._hosts: dict[str, Host] = {}

  def __getitem__(self, name: str) -> Host:
    if name not in self._hosts:
      self._hosts[name] = Host(self._concurrency, self._rate)
    return self._hosts[name]
