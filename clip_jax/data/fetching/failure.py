"""The error that says why the image of a URL was not fetched."""


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
