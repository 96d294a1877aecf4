"""One of several processes that evaluate together.

usage: python -m tests.evaluation.together IMAGES FOLDER

Below FOLDER, `shared` is a cache of features that all processes see, and
`cache-I` and `suite-I` are folders that process I alone has. It measures with
each cache, runs a suite, fits a probe on all devices, and writes what came of
it to `answers-I.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.data.sources import open_source
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.evaluation.features import extraction
from clip_jax.evaluation.features.cache import FeatureCache, identity_of
from clip_jax.evaluation.probes.device_solver import shard_rows
from clip_jax.evaluation.probes.logistic_regression import fit
from clip_jax.evaluation.suite import run
from clip_jax.evaluation.suite.plan import Pair
from clip_jax.evaluation.tasks import retrieval
from clip_jax.parallel.distributed import detect_cluster, join_cluster
from clip_jax.parallel.mesh import make_mesh
from tests.evaluation.rows import blobs
from tests.evaluation.suite.fakes import FakeSuite
from tests.tiny_run import tiny_model

SHARD_ROWS = 4
PAIRS = tuple(
  Pair('food101', task) for task in ('zero_shot', 'linear_probe', 'few_shot')
)


def main(images: str, folder: str) -> None:
  """Writes the answers."""
  extraction.SHARD_ROWS = SHARD_ROWS
  with join_cluster(detect_cluster()):
    me = jax.process_index()
    answers: dict[str, Any] = {
      name: measure(images, Path(folder, name.replace('own', f'cache-{me}')))
      for name in ('shared', 'own')
    }
    answers['computed'] = run_suite(Path(folder, f'suite-{me}'))
    answers['probe'] = probe()
    Path(folder, f'answers-{me}.json').write_text(json.dumps(answers))


def measure(images: str, cache: Path) -> dict[str, Any]:
  """What retrieval gives, and how many items it encoded."""
  encoded = {'images': 0, 'texts': 0}

  def progress(items, total, unit, *, done=0):
    del total, done
    for item in items:
      encoded[unit] += 1
      yield item

  model = tiny_model(batch_size=8, mesh=make_mesh())
  features = FeatureCache(cache, model, identity_of(model, 'float32'))
  data = dataset_of(open_source(images))
  result = retrieval.evaluate(
    model, data, Options(cache=features, progress=progress)
  )
  return {
    'metrics': result.metrics,
    'records': result.records,
    'corrupt': result.corrupt,
    'encoded': encoded,
  }


def run_suite(folder: Path) -> list[str]:
  """The pairs that were computed."""
  fake = FakeSuite(folder)
  run(fake.suite, PAIRS, fake.say)
  return list(fake.calls)


def probe() -> dict[str, Any]:
  """Where its rows lie here, and what was found."""
  rows, labels = blobs(3, 15)
  array = shard_rows(rows)
  result = fit(array, labels, C=1.0, classes=3)
  return {
    'shards': [shard.data.shape for shard in array.addressable_shards],
    'weights': result.weights.tolist(),
    'bias': result.bias.tolist(),
    'predicted': result.predict(rows.astype(np.float32)).tolist(),
  }


if __name__ == '__main__':
  main(*sys.argv[1:])
