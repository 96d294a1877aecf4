"""How much arithmetic one example costs, by formula.

Only matrix products and convolutions count, a multiply-add as 2 FLOPs, and a
causal mask saves nothing: what a dense implementation on matrix units does,
and the convention of open_clip's model_profile.csv. Norms, softmax and
activations add under four percent.
"""

from clip_jax.models.config import (
  CLIPConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)


def training_flops(config: CLIPConfig, patch_dropout: float = 0.0) -> int:
  """FLOPs of a pair in training: three times its forward products (PaLM, arXiv
  2204.02311, appendix B). Neither what remat computes again is counted nor the
  loss, nor what the last blocks leave out since one token of each is pooled.

  Args:
    patch_dropout: the share of patches that a ViT does not see.
  """
  forward = image_flops(config, patch_dropout) + text_flops(config)
  spared = _spared_flops(config.text, config.text.context_length)
  tower = config.image
  if not isinstance(tower, ResNetConfig) and tower.pooling == 'class_token':
    spared += _spared_flops(tower, tower.kept_patches(patch_dropout) + 1)
  return 3 * (forward - spared)


def image_flops(config: CLIPConfig, patch_dropout: float = 0.0) -> int:
  """FLOPs of one image through its tower and projection, forward."""
  tower = config.image
  if isinstance(tower, ResNetConfig):
    return _resnet_flops(tower) + 2 * tower.pooled_width * config.embed_dim
  tokens = tower.kept_patches(patch_dropout) + tower.class_token
  patches = 2 * tower.patches * 3 * tower.patch_size**2 * tower.width
  total = patches + _stack_flops(tower, tokens)
  if tower.pooling == 'attention':
    total += _query_flops(tower.width, tokens)
    total += 2 * tower.width * (tower.width + 2 * _hidden(tower))
  return total + _projection_flops(tower, config.embed_dim)


def text_flops(config: CLIPConfig) -> int:
  """FLOPs of one text at full context through its tower and projection."""
  tower = config.text
  stack = _stack_flops(tower, tower.context_length)
  return stack + _projection_flops(tower, config.embed_dim)


def _projection_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, embed_dim: int
) -> int:
  return 0 if tower.projection == 'none' else 2 * tower.width * embed_dim


def _stack_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, tokens: int
) -> int:
  """FLOPs of the blocks: keys and values, and what a query costs."""
  keys_and_values = 2 * 2 * tower.width**2
  return tower.depth * tokens * (keys_and_values + _asking_flops(tower, tokens))


def _asking_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, tokens: int
) -> int:
  """FLOPs of a token in a block, besides its key and its value: the query's
  and the output's product, attention's logits and mixing, and the MLP."""
  products = 2 * tower.width**2 + 2 * tower.width * _hidden(tower)
  return 2 * (products + 2 * tokens * tower.width)


def _spared_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, tokens: int
) -> int:
  """What `Transformer` leaves out of the last block when asked for one token,
  which the published counts hold nevertheless."""
  return (tokens - 1) * _asking_flops(tower, tokens)


def _query_flops(width: int, tokens: int) -> int:
  """FLOPs of one query that reads `tokens` tokens."""
  products = width**2 * (1 + 2 * tokens)  # of the query, the keys, the values
  return 2 * (products + 2 * tokens * width)


def _resnet_flops(tower: ResNetConfig) -> int:
  """FLOPs up to the attention pooling, without the projection."""
  width, side = tower.width, tower.image_size // 2
  half = width // 2
  stem = side**2 * 9 * (3 * half + half * half + half * width)
  total, inputs, side = stem, width, side // 2
  for stage, blocks in enumerate(tower.layers):
    inner = width * 2**stage
    outputs = 4 * inner
    before, side = side, side // 2 if stage else side
    for block in range(blocks):
      if block:
        inputs, before = outputs, side
      # The 3 x 3 convolution still sees the map before its average pool.
      total += before**2 * inner * (inputs + 9 * inner)
      total += side**2 * inner * outputs
      if block == 0:
        total += side**2 * inputs * outputs  # the shortcut's
    inputs = outputs
  return 2 * total + _query_flops(tower.pooled_width, tower.patches + 1)


def _hidden(tower: VisionTransformerConfig | TextTransformerConfig) -> int:
  return int(tower.width * tower.mlp_ratio)
