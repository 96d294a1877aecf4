"""Trains one tiny run for each of several data sets, in one process.

usage: python -m tests.training.train_each FOLDER STEPS NAME=SPEC…

Each run is in FOLDER/NAME. Several processes that JAX_COORDINATOR_ADDRESS joins
train together.
"""

import sys

from clip_jax.parallel.distributed import detect_cluster, join_cluster
from clip_jax.training.loop import train
from tests.tiny import tiny_config


def main(folder: str, steps: str, *named_specs: str) -> None:
  with join_cluster(detect_cluster(), ''):
    for named_spec in named_specs:
      name, _, spec = named_spec.partition('=')
      config = tiny_config()
      config.data.train = spec
      config.total_steps = int(steps)
      config.log_every_steps = 1
      config.evaluation.every_steps = 0
      train(config, f'{folder}/{name}')


if __name__ == '__main__':
  main(*sys.argv[1:])
