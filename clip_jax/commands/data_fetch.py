"""Fetches the images of lists of URLs into WebDataset shards.

usage:
  clip-jax data fetch LIST… --out=DIR [--url_column=…] [--caption_column=…]
      [--resize=no|keep_ratio|keep_ratio_largest|center_crop] [--image_size=N]
      [--host_rate=N] [--retries=N] [--timeout=S] [--retry_failed]
      [--workers=N] [--json]

examples:
  clip-jax data fetch urls.txt --out=shards
  clip-jax data fetch 'cc12m/*.parquet' --out=gs://bucket/cc12m \\
      --resize=keep_ratio --image_size=256 --workers=16
  clip-jax data fetch laion.parquet --out=shards --url_column=URL \\
      --caption_column=TEXT --host_rate=5 --user_agent='my-lab/1.0 (me@lab.org)'

A list is Parquet, CSV, TSV, JSON lines (columns url, and caption or text), or a
URL a line; its other columns go into the .json of each image. A column sha256
is compared with what comes. Shards are as img2dataset writes them (00000.tar,
00000.parquet with the status of each URL, 00000_stats.json); wds:DIR/*.tar
reads them. Images are kept byte for byte, unless --resize makes larger ones
smaller. A killed command goes on with the shards that are not complete;
--retry_failed also asks again for the URLs that failed in those that are, and
keeps what came.

robots.txt and the header X-Robots-Tag (noai, noimageai, noindex, noimageindex)
are obeyed. Addresses that are not of the public internet are refused, also
behind a redirect, unless --allow_private. Where all URLs fail, the exit code is
1.
"""

from typing import TYPE_CHECKING

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import FailureError, UsageError, check_choice
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.data.fetching.fetch import Fetch


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""

  def integer(name: str, default: int, what: str, least: int) -> None:
    flags.DEFINE_integer(name, default, what, least, flag_values=values)

  def number(name: str, default: float, what: str) -> None:
    flags.DEFINE_float(name, default, what, 0, flag_values=values)

  text = flags.DEFINE_string
  common_flags.define_path(values, 'out', 'the folder of the shards')
  text('url_column', '', 'of URLs; by default url', flag_values=values)
  text(
    'caption_column',
    '',
    'of texts; by default caption or text, if there is one',
    flag_values=values,
  )
  integer('shard_size', 10_000, 'URLs of a shard', 1)
  text(
    'resize',
    'no',
    'no, keep_ratio (by the shorter side), keep_ratio_largest, center_crop',
    flag_values=values,
  )
  integer('image_size', 256, 'pixels of the side that is resized', 1)
  text('image_format', 'jpg', 'of what is resized: jpg, png or webp',
       flag_values=values)  # fmt: skip
  integer('quality', 95, 'of what is resized, as jpg or webp', 1)
  integer('min_side', 0, 'refuse images with a shorter side, in pixels', 0)
  number('max_aspect_ratio', 0.0, 'refuse longer images; 0 is any')
  integer('concurrency', 128, 'URLs at a time', 1)
  integer('host_concurrency', 8, 'URLs of one host at a time', 1)
  number('host_rate', 0.0, 'URLs of one host a second; 0 is any')
  number('connect_timeout', 10.0, 'seconds to reach a host')
  number('timeout', 30.0, 'seconds for a whole answer')
  integer('retries', 2, 'attempts after the first', 0)
  flags.DEFINE_bool(
    'retry_failed',
    False,
    'ask again for the URLs that failed in an earlier run',
    flag_values=values,
  )
  number('max_retry_after', 60.0, 'longest Retry-After to obey, in seconds')
  number('max_megabytes', 32.0, 'of an answer, also when unpacked')
  text('user_agent', 'clip-jax/0.1', 'who we are; robots.txt knows the name '
       'before the slash', flag_values=values)  # fmt: skip
  flags.DEFINE_bool(
    'allow_private',
    False,
    'also connect to addresses of this machine and its networks',
    flag_values=values,
  )
  common_flags.define_engine(values, workers=1)  # which share the limits
  common_flags.define_images(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Fetches the lists, and prints what came of them."""
  if not words:
    raise UsageError(
      'data fetch what? Name lists of URLs, such as urls.parquet.'
    )
  out = common_flags.out_folder(values, 'name the folder of shards')
  try:
    import aiohttp
    import pyarrow  # noqa: F401
  except ImportError as error:
    raise UsageError(
      f'data fetch needs {error.name}: pip install ".[fetch]".'
    ) from error
  del aiohttp

  from clip_jax.data.fetching.fetch import (
    describe,
    fetch_lists,
    what_failed_most,
  )

  fetch = _fetch_of(values)
  engine = common_flags.engine_of(values)
  summary = fetch_lists(
    words,
    out,
    fetch,
    retry_failed=values.retry_failed,
    engine=engine,
    progress=show_progress,
  )
  if values.json:
    printing.print_json(summary)
  else:
    print(describe(summary))
  if not summary['successes']:
    raise FailureError(f'no URL gave an image; {what_failed_most(summary)}.')


def _fetch_of(values: flags.FlagValues) -> 'Fetch':
  """Returns what the flags say.

  Raises:
    UsageError: a flag is wrong.
  """
  from clip_jax.data.fetching.client import Limits
  from clip_jax.data.fetching.fetch import Fetch
  from clip_jax.data.fetching.resize import FORMATS, MODES, Resizing
  from clip_jax.data.fetching.url_list import ListColumns

  check_choice('--resize', values.resize, MODES)
  check_choice('--image_format', values.image_format, FORMATS)
  if values.quality > 100:
    raise UsageError(f'--quality={values.quality}: use 1 to 100.')
  for name in ('timeout', 'connect_timeout', 'max_megabytes'):
    if not values[name].value:
      raise UsageError(f'--{name}=0: use a number above 0.')
  if not values.user_agent.isascii() or not values.user_agent.isprintable():
    raise UsageError(f'--user_agent={values.user_agent!r}: use ASCII.')
  if not values.user_agent.partition('/')[0].strip():
    raise UsageError('--user_agent: begin with a name, as in my-lab/1.0.')
  return Fetch(
    columns=ListColumns(values.url_column, values.caption_column),
    shard_size=values.shard_size,
    resizing=Resizing(
      mode=values.resize,
      image_size=values.image_size,
      image_format=values.image_format,
      quality=values.quality,
      min_side=values.min_side,
      max_aspect_ratio=values.max_aspect_ratio,
    ),
    limits=Limits(
      concurrency=values.concurrency,
      host_concurrency=values.host_concurrency,
      host_rate=values.host_rate,
      connect_timeout=values.connect_timeout,
      timeout=values.timeout,
      retries=values.retries,
      max_wait=values.max_retry_after,
      max_bytes=round(values.max_megabytes * 2**20),
      user_agent=values.user_agent,
      allow_private=values.allow_private,
    ),
  )
