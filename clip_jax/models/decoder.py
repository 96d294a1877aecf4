"""Predicts captions from images: their tokens one by one, or just their words.

`CaptionDecoder` serves CoCa (arXiv 2205.01917), where it goes on from the text
tower's states, the language model of the paper's figure 2, where it reads
tokens itself, and one as LLaVA's (arXiv 2310.03744), where an image's tokens
stand before the text's. `WordDecoder` is that figure's bag of words.

Shapes: B images, M tokens of an image and C their width, T tokens of a text, D
width, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models.config import CLIPConfig
from clip_jax.models.layers import (
  MLP,
  Dtype,
  LayerNorm,
  Transformer,
  accumulation_dtype,
  normal,
)

# Positions whose logits over the vocabulary are in memory at a time.
_CHUNK = 8

_NO_WORDS = -1e9  # a score below all others


class CaptionDecoder(nn.Module):
  """A causal Transformer that reads the tokens of an image.

  They are its prefix, after a projector; or else its blocks attend to them.
  """

  config: CLIPConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    image_tokens: Float[Array, 'B M C'],
    text_tokens: Float[Array, 'B T D'] | None = None,
    captions: int = 1,
    likeliest: bool = False,
  ) -> Float[Array, 'B T'] | Int[Array, 'B T']:
    """Returns the log-probability of each token, given those before it.

    The first is predicted from the image alone, so that the sum up to the end
    token is that of the caption, whether or not a tokenizer writes a token at
    its beginning. After the end token the values mean nothing (`caption_mask`).

    Args:
      tokens: ids.
      image_tokens: see `DualEncoder.outputs`.
      text_tokens: the text tower's, where the decoder reads these.
      captions: how many captions of its image, all of T / captions tokens, a
        row has one after another; they do not see each other.
      likeliest: return the likeliest token of each position instead.
    Returns:
      Nats, in float32 (or wider); of each token by its own position.
    """
    config, text = self.config.decoder, self.config.text
    assert config is not None
    length = tokens.shape[1] // captions
    states: Any = text_tokens
    if states is None:
      embedding = nn.Embed(
        text.vocab_size,
        config.width,
        embedding_init=normal(0.02),
        dtype=self.dtype,
        name='token_embedding',
      )
      states = embedding(tokens)
    start = self.param('start_embedding', normal(0.02), (config.width,))
    x = _shift(states, start.astype(self.dtype), captions)
    if config.reads != 'text_tower':  # whose states have positions
      positions = self.param(
        'position_embedding',
        normal(0.01),
        (text.context_length, config.width),
      )
      x = x + jnp.tile(positions[:length], (captions, 1)).astype(self.dtype)
    mask = np.kron(np.eye(captions), np.tri(length)).astype(bool)
    transformer = Transformer(
      config, self.dtype, self.remat, name='transformer'
    )
    if config.reads == 'image_prefix':
      projector = MLP(
        config.width,
        'gelu',
        config.width**-0.5,
        self.dtype,
        config.width,
        name='projector',
      )
      first = image_tokens.shape[1]
      x = jnp.concatenate([projector(image_tokens), x], axis=1)
      x = transformer(x, _prefix_mask(mask, first))[:, first:]
    else:
      x = transformer(x, mask, context=image_tokens)
    x = LayerNorm(config.norm_eps, name='ln_final')(x)
    logits = TokenLikelihood(text.vocab_size, self.dtype, name='logits')
    return logits(x, None if likeliest else tokens)

  def scores(
    self,
    image_tokens: Float[Array, 'B M C'],
    tokens: Int[Array, 'N T'],
    text_tokens: Float[Array, 'N T D'] | None = None,
  ) -> Float[Array, 'B N']:
    """Returns ln p(caption | image) of each caption for each image, in nats.

    The captions go through the decoder as one row, so that what is read of an
    image is computed once for all of them.

    Args:
      image_tokens, text_tokens: as in `__call__`.
      tokens: of N captions, which may be shorter than the context.
    """
    images, (count, length) = len(image_tokens), tokens.shape

    def repeat(x: jax.Array) -> jax.Array:
      x = x.reshape(count * length, *x.shape[2:])
      return jnp.broadcast_to(x, (images, *x.shape))

    states = None if text_tokens is None else repeat(text_tokens)
    each = self(repeat(tokens), image_tokens, states, captions=count)
    inside = caption_mask(tokens, self.config.text.end_token)
    return jnp.where(inside, each.reshape(images, count, length), 0).sum(-1)

  def make_parameters(self, tokens: Int[Array, 'B T']) -> None:
    """Makes all parameters, for `DualEncoder.init`.

    Args:
      tokens: of the shape of a batch's.
    """
    config, image = self.config, self.config.image
    assert config.decoder is not None
    states = None
    if config.decoder.reads == 'text_tower':
      states = jnp.zeros((*tokens.shape, config.text.width), self.dtype)
    context = (len(tokens), image.patches, image.pooled_width)
    self(tokens, jnp.zeros(context, self.dtype), states)


class TokenLikelihood(nn.Module):
  """A linear layer to the vocabulary, and the log-softmax of given tokens.

  The logits of a whole batch, [B, T, V], would be by far the largest arrays of
  a train step. They are computed for a few positions at a time, and again in
  the backward pass.
  """

  vocab_size: int
  dtype: Dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], tokens: Int[Array, 'B T'] | None
  ) -> Float[Array, 'B T'] | Int[Array, 'B T']:
    """Returns the log-likelihood of tokens; without any, the likeliest ones."""
    batch, length, width = x.shape
    kernel = self.param('kernel', normal(width**-0.5), (width, self.vocab_size))
    kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
    wide = accumulation_dtype(self.dtype)

    @jax.checkpoint
    def of_chunk(part: tuple[jax.Array, jax.Array | None]) -> jax.Array:
      x, tokens = part  # c B D, c B
      logits = jnp.matmul(x, kernel, preferred_element_type=wide)  # c B V
      if tokens is None:
        return jnp.argmax(logits, axis=-1)
      # Picked by a mask, as the axis V may be split over devices.
      picked = tokens[..., None] == jnp.arange(self.vocab_size)
      own = jnp.sum(jnp.where(picked, logits, 0), axis=-1)
      return own - jax.nn.logsumexp(logits, axis=-1)

    chunks = math.ceil(length / _CHUNK)
    size = math.ceil(length / chunks)
    padding = chunks * size - length

    def split(x: jax.Array) -> jax.Array:
      x = jnp.pad(x.swapaxes(0, 1), ((0, padding),) + ((0, 0),) * (x.ndim - 1))
      return x.reshape(chunks, size, *x.shape[1:])

    parts = split(x), None if tokens is None else split(tokens)
    rows = jax.lax.map(of_chunk, parts)
    return rows.reshape(-1, batch)[:length].T


class WordDecoder(nn.Module):
  """A linear layer from the pooled image to a logit for each token id."""

  config: CLIPConfig
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, pooled: Float[Array, 'B C']) -> Float[Array, 'B V']:
    """Returns logits in float32 (or wider)."""
    logits = nn.Dense(
      self.config.text.vocab_size,
      kernel_init=normal(pooled.shape[-1] ** -0.5),
      dtype=self.dtype,
      name='logits',
    )(pooled)
    return logits.astype(accumulation_dtype(self.dtype))

  def scores(
    self,
    pooled: Float[Array, 'B C'],
    tokens: Int[Array, 'N T'],
    text_tokens: Float[Array, 'N T D'] | None = None,
  ) -> Float[Array, 'B N']:
    """Returns how near each caption's words are to those of each image.

    It is minus the divergence (Kullback and Leibler) of the distribution that
    is predicted from the uniform one over the caption's K words: the mean of
    their ln p, plus ln K. So captions of any number of words compare.

    Args:
      tokens: of N captions; one without a word is never the nearest.
    """
    del text_tokens
    words = distinct_words(tokens, self.config.text.end_token)  # N T
    count = words.sum(axis=1)
    each = jax.nn.log_softmax(self(pooled))[:, tokens]  # B N T
    total = jnp.where(words, each, 0).sum(axis=2)
    score = total / jnp.maximum(count, 1) + jnp.log(jnp.maximum(count, 1))
    return jnp.where(count > 0, score, _NO_WORDS)

  def make_parameters(self, tokens: Int[Array, 'B T']) -> None:
    """Makes all parameters; see `CaptionDecoder.make_parameters`."""
    self(jnp.zeros((len(tokens), self.config.image.pooled_width), self.dtype))


Decoder = CaptionDecoder | WordDecoder


def make_decoder(config: CLIPConfig, dtype: Dtype, remat: str) -> Decoder:
  """Returns the module that `config.decoder` describes."""
  assert config.decoder is not None
  if config.decoder.reads == 'pooled_image':
    return WordDecoder(config, dtype)
  return CaptionDecoder(config, dtype, remat)


def likeliest_tokens(
  model: Any, seen: Float[Array, 'B M C'], tokens: Int[Array, 'B T']
) -> Int[Array, 'B T']:
  """Returns the likeliest token of each position, given those before it.

  Args:
    model: a `DualEncoder` with a `CaptionDecoder`, bound.
    seen: as in `DualEncoder.caption_scores`.
    tokens: of captions; those of a position and after it do not matter.
  """
  states = None
  if model.config.decoder.reads == 'text_tower':
    states = model.text(tokens, all_tokens=True)
  return model.decoder(tokens, seen, states, likeliest=True)


def caption_mask(
  tokens: Int[Array, 'B T'], end_token: int
) -> Bool[Array, 'B T']:
  """Returns which tokens are a caption's: up to its end token, and with it."""
  ends = (tokens == end_token).astype(jnp.int32)
  return jnp.cumsum(ends, axis=1) - ends == 0


def distinct_words(
  tokens: Int[Array, 'B T'], end_token: int
) -> Bool[Array, 'B T']:
  """Returns where each word of a caption comes first, before its end token."""
  inside = caption_mask(tokens, end_token) & (tokens != end_token)
  alike = tokens[:, :, None] == tokens[:, None, :]  # B T T
  earlier = jnp.tri(tokens.shape[1], k=-1, dtype=bool)
  return inside & ~(alike & earlier).any(axis=2)


def _prefix_mask(
  mask: Bool[np.ndarray, 'T T'], length: int
) -> Bool[np.ndarray, 'L L']:
  """Returns a mask for tokens after a prefix, which all of them see.

  The tokens of the prefix see each other, all of them (a prefix language model,
  as PaliGemma's, arXiv 2407.07726).
  """
  mask = np.pad(mask, ((length, 0), (length, 0)))
  mask[:, :length] = True
  return mask


def _shift(
  x: Float[Array, 'B T D'], start: Float[Array, ' D'], captions: int
) -> Float[Array, 'B T D']:
  """Moves the tokens of each caption by one; `start` comes first."""
  batch, total, width = x.shape
  x = x.reshape(batch * captions, -1, width)
  first = jnp.broadcast_to(start, (len(x), 1, width))
  x = jnp.concatenate([first, x[:, :-1]], axis=1)
  return x.reshape(batch, total, width)
