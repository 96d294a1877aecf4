"""How much arithmetic one example costs, by formula.

Only matrix products count, a multiply-add as 2 FLOPs, and a causal mask saves
nothing: what a dense implementation on matrix units does, and the convention
of open_clip's model_profile.csv. Norms, softmax and activations add under two
percent.
"""

from clip_jax.models.config import (
  CLIPConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)


def image_flops(config: CLIPConfig) -> int:
  """FLOPs of one image through its tower and projection, forward."""
  tower = config.image
  tokens = tower.patches + (tower.pooling == 'class_token')
  patches = 2 * tower.patches * 3 * tower.patch_size**2 * tower.width
  projection = 2 * tower.width * config.embed_dim
  return patches + _stack_flops(tower, tokens) + projection


def text_flops(config: CLIPConfig) -> int:
  """FLOPs of one text at full context through its tower and projection."""
  tower = config.text
  projection = 2 * tower.width * config.embed_dim
  return _stack_flops(tower, tower.context_length) + projection


def _stack_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, tokens: int
) -> int:
  """FLOPs of the blocks: four square products, the MLP, and attention."""
  hidden = int(tower.width * tower.mlp_ratio)
  weights = 4 * tower.width**2 + 2 * tower.width * hidden
  attention = 2 * tokens * tower.width  # logits, and mixing the values
  return tower.depth * 2 * tokens * (weights + attention)
