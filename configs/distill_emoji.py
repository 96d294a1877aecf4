"""The demo's model taught to a student of a sixth of its size, on a CPU.

The demo is the teacher: it sees eight views of each emoji once, and is not run
again. The student learns its softmaxes beside the contrastive loss.

  clip-jax embed --model=runs/emoji --config=configs/distill_emoji.py \\
      --out=runs/emoji_teacher
  clip-jax train --config=configs/distill_emoji.py --workdir=runs/distilled
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config() -> ConfigDict:
  """The demo's recipe with smaller towers, and a teacher."""
  c = emoji.get_config()
  c.total_steps = 400
  c.model.embed_dim = 64
  c.model.image.update(width=64, depth=2, heads=2)
  c.model.text.update(width=64, depth=1, heads=2)
  c.data.views = 8
  c.data.teachers = ('runs/emoji_teacher',)
  c.objective.added.distillation = 1.0
  return c
