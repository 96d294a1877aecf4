"""The page of a search, or of the copies in a data set, with their images."""

from collections.abc import Sequence
from pathlib import Path

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Source
from clip_jax.inference.search import QueryResult
from clip_jax.report import page
from clip_jax.report.images import data_uri, find_records

_SIDE = 320  # pixels of an image: 160 on the page, at double density


def write_page(
  path: Path,
  results: Sequence[QueryResult],
  *,
  source: Source | None,
  title: str,
  heading: str,
  names: Sequence[str],
  note: str,
  quoted: bool = False,
) -> int:
  """Writes the page of all queries.

  Args:
    path: where the page is written, as a whole.
    results: the queries with their matches.
    source: has the images; None, the page has ids and captions only.
    title: of the browser's window.
    heading: the first line of the page.
    names: of the files and models in use.
    note: sentences below.
    quoted: whether queries stand in quotation marks.
  Returns:
    How many matched images are missing on the page, since the source does not
    have them or they cannot be read.
  Raises:
    FailureError: the page cannot be written.
  """
  ids = {
    match.row: match.id
    for result in results
    for match in result.matches
    if match.kind == 'image'
  }
  images = _images(source, ids) if source is not None else {}
  page.write(
    path,
    'search.html',
    results=results,
    query_images=[
      data_uri(result.query, _SIDE) if result.is_image else None
      for result in results
    ],
    images=images,
    title=title,
    heading=heading,
    names=names,
    note=note,
    quoted=quoted,
  )
  return len(ids) - len(images)


def _images(source: Source, ids: dict[int, str]) -> dict[int, str]:
  """Returns the data: URI of each row whose image can be read."""
  images = {}
  for row, index in find_records(source, ids).items():
    try:
      images[row] = data_uri(source[index]['image'], _SIDE)
    except CorruptImageError:
      continue
  return images
