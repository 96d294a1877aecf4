"""The predictive objectives of the paper's figure 2, as terms of an objective.

`captioning` predicts the words of a caption in their order, and `bag_of_words`
which words there are, in any order. Each trains a model by itself
(`objective.name`), and `captioning` also beside a contrastive loss (CoCa, arXiv
2205.01917): `objective.added.captioning`.

Shapes: B pairs, T tokens, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.models.config import CLIPConfig
from clip_jax.models.decoder import caption_mask, distinct_words
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.objective import Arrays, Inputs, Term


def captioning(config: CLIPConfig) -> Term:
  """Returns the negative log-likelihood of the captions, given their images.

  It is a mean over the tokens of the whole batch, each caption's up to its end
  token and with that (CoCa, equation 2, divided by the number of tokens).
  Padding does not count. A token that a tokenizer writes at the beginning of
  every caption is predicted like all others.

  Args:
    config: of a model whose decoder reads anything but the 'pooled_image'.
  """
  assert config.decoder is not None
  outputs = {'image_tokens'}
  if config.decoder.reads == 'text_tower':
    outputs.add('text_tokens')
  end_token = config.text.end_token

  def pairs(model: DualEncoder, towers: Arrays, inputs: Inputs) -> Arrays:
    decoder: Any = model.decoder
    tokens = inputs['tokens']
    each = decoder(tokens, towers['image_tokens'], towers.get('text_tokens'))
    own = jnp.where(caption_mask(tokens, end_token), each, 0)
    return {'caption_log_likelihood': own.sum(axis=1)}

  def loss(pairs: Arrays, shared: Arrays, inputs: Inputs) -> jax.Array:
    del shared
    count = caption_mask(inputs['tokens'], end_token).sum()
    return -pairs['caption_log_likelihood'].sum() / count

  return Term(pairs, loss, frozenset(outputs))


def bag_of_words(config: CLIPConfig) -> Term:
  """Returns the cross-entropy of a caption's words, given its image.

  The words are the distinct tokens before the end token, in no order. A softmax
  over the vocabulary is compared with the uniform distribution over them, as
  Joulin et al. do (arXiv 1511.02251, section 3.1), whom the paper follows: each
  of K words should have probability 1 / K, so that the loss of a caption is at
  least ln K. It is a mean over the captions that have a word.

  Args:
    config: of a model whose decoder reads the 'pooled_image'.
  """
  end_token = config.text.end_token

  def pairs(model: DualEncoder, towers: Arrays, inputs: Inputs) -> Arrays:
    decoder: Any = model.decoder
    words = distinct_words(inputs['tokens'], end_token)
    log_p = jax.nn.log_softmax(decoder(towers['pooled_image']))  # B V
    own = jnp.take_along_axis(log_p, inputs['tokens'], axis=1)  # B T
    total = jnp.where(words, own, 0).sum(axis=1)
    return {'word_log_likelihood': total / jnp.maximum(words.sum(axis=1), 1)}

  def loss(pairs: Arrays, shared: Arrays, inputs: Inputs) -> jax.Array:
    del shared
    has_words = distinct_words(inputs['tokens'], end_token).any(axis=1)
    total = jnp.where(has_words, pairs['word_log_likelihood'], 0).sum()
    return -total / jnp.maximum(has_words.sum(), 1)

  return Term(pairs, loss, frozenset({'pooled_image'}))
