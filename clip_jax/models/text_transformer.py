"""The text tower: a Transformer, causal in CLIP, pooled where the text ends.

Shapes: B texts, T tokens, D width.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from clip_jax.models.config import LoRAConfig, TextTransformerConfig
from clip_jax.models.layers import Dtype, LayerNorm, Transformer, normal


class TextTransformer(nn.Module):
  """Turns the token ids of a text into one vector (paper, section 2.4)."""

  config: TextTransformerConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'
  lora: LoRAConfig | None = None

  @nn.compact
  def __call__(
    self, tokens: Int[Array, 'B T'], all_tokens: bool = False
  ) -> Float[Array, 'B *T D']:
    """Returns the last LayerNorm's output where `pooling` says, or of all.

    A row without an end token is pooled at its first position: tokenizers
    always write one, also when they truncate a text.

    Args:
      tokens: ids.
      all_tokens: whether to return all positions, [B, T, D]; `pooled_index`
        says which of them is otherwise returned.
    """
    config = self.config
    length = tokens.shape[1]
    embedding = nn.Embed(
      config.vocab_size,
      config.width,
      embedding_init=normal(0.02),
      dtype=self.dtype,
      name='token_embedding',
    )
    positions = self.param(
      'position_embedding', normal(0.01), (config.context_length, config.width)
    )
    x = embedding(tokens) + positions[:length].astype(self.dtype)  # B T D
    mask = None
    if config.causal:
      mask = np.tri(length, dtype=bool)
    transformer = Transformer(
      config, self.dtype, self.remat, self.lora, name='transformer'
    )
    index = None if all_tokens else pooled_index(tokens, config)
    x = transformer(x, mask, index)  # B D
    return LayerNorm(config.norm_eps, name='ln_final')(x)


def pooled_index(
  tokens: Int[Array, 'B T'], config: TextTransformerConfig
) -> Int[Array, ' B']:
  """Returns the position of each row that stands for the text."""
  if config.pooling == 'end':
    return jnp.argmax(tokens == config.end_token, axis=1)
  if config.pooling == 'highest':
    return jnp.argmax(tokens, axis=1)
  return jnp.full(tokens.shape[:1], tokens.shape[1] - 1)
