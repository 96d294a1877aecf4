"""The demo: emoji and their names, on a laptop's CPU.

clip-jax train --config=configs/emoji.py --workdir=runs/emoji
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """A 1.7 M parameter CLIP for 3,944 pictures."""
  c = base.get_config()
  c.total_steps = 1_500
  c.log_every_steps = 50

  c.model.embed_dim = 128
  c.model.image.update(
    image_size=32,
    patch_size=8,
    width=128,
    depth=4,
    heads=4,
  )
  c.model.text.update(context_length=16, width=128, depth=3, heads=4)
  c.tokenizer = 'sentencepiece:runs/emoji_tokenizer.model'
  # The names are made of few words: with these, a row is at most 14 tokens.
  c.tokenizer_training.update(
    vocab_size=1_500, model_type='bpe', split_by_script=False
  )

  c.data.train = 'tfds:emoji#train'
  c.data.batch_size = 256
  c.data.cache = True

  c.optimizer.learning_rate = 2e-3
  c.optimizer.warmup_steps = 100
  c.mesh.cpu_devices = 2  # laptops and test machines have at least two cores

  c.checkpoint.every_steps = 500
  c.evaluation.every_steps = 500
  c.evaluation.tasks = ('zero_shot', 'retrieval')
  c.evaluation.data = 'tfds:emoji#test'
  return c
