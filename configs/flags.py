"""The demo's model on other pictures: the flags of the world, and their names.

Flags of one hand are trained on, and those of another are held out; the demo's
emoji have them in a third. clip_jax/training/README.md says where they come
from, and what this reaches in a tenth of the steps of training from scratch:

  clip-jax train --config=configs/flags.py --workdir=runs/flags_tuned
  clip-jax train --config=configs/flags.py:scratch --workdir=runs/flags_scratch
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config(start: str = 'emoji') -> ConfigDict:
  """Returns the recipe; 'scratch' trains from random weights, as the demo."""
  c = emoji.get_config()
  c.data.train = 'folder:runs/flags#train'
  c.data.batch_size = 128
  c.log_every_steps = 10
  if start == 'scratch':
    c.total_steps = 300
    c.optimizer.warmup_steps = 30
    # The vocabulary is the demo's, which has the names of countries.
    c.tokenizer_training.vocab_size = 0
  else:
    c.initialize_from = 'runs/emoji'
    c.total_steps = 30
    c.optimizer.warmup_steps = 3
    c.optimizer.learning_rate = 1e-3
  c.evaluation.every_steps = 0
  c.evaluation.tasks = ('zero_shot',)
  c.evaluation.data = 'folder:runs/flags#test'
  return c
