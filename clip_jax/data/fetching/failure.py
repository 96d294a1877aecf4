"""The error that says why the image of a URL was not fetched."""

import errno
import socket
import zlib

import aiohttp

from clip_jax.data.fetching.addresses import AddressRefusedError


class FetchError(Exception):
  """A URL gave no image; other URLs go on.

  Attributes:
    reason: a short phrase that many rows share, so that it can be counted.
    detail: what is particular about this one, or ''.
    retry: whether it may be otherwise a moment later.
    wait: seconds before which the server asked not to be asked again; 0 is no
      such wish.
  """

  def __init__(
    self,
    reason: str,
    detail: str = '',
    *,
    retry: bool = False,
    wait: float | int = 0,
  ):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason = reason
    self.detail = detail
    self.retry = retry
    self.wait = wait


def failure_of(error: Exception) -> FetchError:
  """Returns why a request failed, in words that many rows share."""
  detail = ' '.join(str(error).split())[:200]
  cause = getattr(error, 'os_error', error)
  if isinstance(cause, AddressRefusedError) or 'not a public addr' in detail:
    return FetchError('not a public address', str(cause)[:200])
  if isinstance(error, aiohttp.ClientConnectorDNSError):
    again = getattr(cause, 'errno', None) == socket.EAI_AGAIN
    return FetchError('no such host', detail, retry=again)
  if isinstance(error, aiohttp.ConnectionTimeoutError):
    return FetchError('connecting timed out', retry=True)
  if isinstance(error, TimeoutError):
    return FetchError('timed out', retry=True)
  if isinstance(error, aiohttp.ClientSSLError):
    return FetchError('TLS failed', detail)
  if isinstance(error, aiohttp.InvalidURL):
    return FetchError('not a URL', detail)
  if isinstance(error, aiohttp.ClientConnectorError):
    refused = getattr(cause, 'errno', None) == errno.ECONNREFUSED
    reason = 'connection refused' if refused else 'cannot connect'
    return FetchError(reason, detail, retry=True)
  if isinstance(error, aiohttp.ClientPayloadError):
    return FetchError('truncated answer', retry=True)
  if isinstance(error, aiohttp.ClientResponseError):
    return FetchError('not HTTP', detail)
  if isinstance(error, aiohttp.ClientConnectionError | OSError):
    return FetchError('connection lost', retry=True)
  if isinstance(error, zlib.error):
    return FetchError('damaged Content-Encoding', detail)
  return FetchError('not a URL', detail)
