"""The recipe of the golden run: trained with the code of commit 0474e8b."""

from tests import tiny


def get_config():
  """Returns the smallest recipe that trains for four steps."""
  c = tiny.tiny_config()
  c.total_steps = 4
  c.model.image.update(width=16, depth=1)
  c.model.text.update(width=16, depth=1)
  c.tokenizer = 'sentencepiece:pieces.model'
  c.data.train = 'folder:images'
  c.data.batch_size = 4
  c.checkpoint.keep = 1
  return c
