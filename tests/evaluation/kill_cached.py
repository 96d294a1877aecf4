"""A process that reads features into a cache and is killed as it does.

usage: python -m tests.evaluation.kill_cached FOLDER CACHE IMAGES

It kills itself (SIGKILL) when the encoder asks for so many images.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from clip_jax.data.sources import open_source
from clip_jax.evaluation import Options
from clip_jax.evaluation.features import extraction
from clip_jax.evaluation.features.cache import (
  FeatureCache,
  identity_of,
)
from tests.tiny_run import tiny_model

SHARD_ROWS = 4


def main(folder: str, cache: str, images: str) -> None:
  """Never returns, unless there are fewer images."""
  jax.config.update('jax_num_cpu_devices', 8)  # as tests have it
  extraction.SHARD_ROWS = SHARD_ROWS
  model = tiny_model(batch_size=2)

  def progress(items, total, unit, *, done=0):
    del total, unit, done
    for count, item in enumerate(items):
      if count == int(images):
        os.kill(os.getpid(), signal.SIGKILL)
      yield item

  features = FeatureCache(Path(cache), model, identity_of(model, 'float32'))
  features.images(open_source(folder), Options(progress=progress))


if __name__ == '__main__':
  main(*sys.argv[1:])
