"""The symmetric softmax loss (CLIP paper, section 2.3, figure 3), in two forms
of the same number: one formula over whole arrays, and one where each device
computes its own rows against the gathered other side.

Shapes: B pairs of the global batch, b of one device, E the joint space.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from clip_jax.errors import UsageError

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

FORMS = ('dense', 'all_gather')


def softmax_loss(
  image_features: Float[Array, 'B E'],
  text_features: Float[Array, 'B E'],
  logit_scale: Float[Array, ''],
) -> Float[Array, '']:
  """Symmetric cross-entropy over pairs, the whole B x B product at once.

  Args:
    image_features, text_features: unit rows; row i of each is one pair.
    logit_scale: the multiplier itself, already exponentiated.
  Returns:
    Mean nats a pair; ln(B) where the features carry nothing.
  """
  logits = logit_scale * image_features @ text_features.T
  rows = jax.nn.log_softmax(logits, axis=1)
  columns = jax.nn.log_softmax(logits, axis=0)
  return -(jnp.diagonal(rows).mean() + jnp.diagonal(columns).mean()) / 2


def gathered_softmax_loss(mesh: Mesh, axes: tuple[str, ...]) -> Loss:
  """`softmax_loss` with its rows spread over the devices of a mesh.

  Every device gathers both sides' features and computes the logits of its own
  images against all texts and of its own texts against all images: b x B each.
  The backward pass of the gather is a reduce-scatter, so that features of
  other devices receive their gradient too.

  Args:
    mesh: the devices.
    axes: the mesh axes over which the batch is split.
  Returns:
    A function of global arrays with the signature of `softmax_loss`, whose
    batch must be a multiple of the devices on `axes`.
  """

  def local_loss(image_features, text_features, logit_scale):
    pairs = image_features.shape[0]  # b
    all_images = jax.lax.all_gather(image_features, axes, tiled=True)  # B E
    all_texts = jax.lax.all_gather(text_features, axes, tiled=True)  # B E
    first = jax.lax.axis_index(axes) * pairs
    own = first + jnp.arange(pairs)  # where this device's pairs stand in B

    def cross_entropy(rows, columns):
      logits = logit_scale * rows @ columns.T  # b B
      matched = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
      return jnp.sum(jax.nn.logsumexp(logits, axis=1) - matched)

    total = cross_entropy(image_features, all_texts)
    total += cross_entropy(text_features, all_images)
    return jax.lax.psum(total, axes) / (2 * all_images.shape[0])

  return jax.shard_map(
    local_loss,
    mesh=mesh,
    in_specs=(P(axes), P(axes), P()),
    out_specs=P(),
  )


def make_softmax_loss(form: str, mesh: Mesh, axes: tuple[str, ...]) -> Loss:
  """The loss named by `objective.form`.

  Raises:
    UsageError: the form is unknown.
  """
  if form == 'dense':
    return softmax_loss
  if form == 'all_gather':
    return gathered_softmax_loss(mesh, axes)
  raise UsageError(
    f'objective.form={form!r}: choose one of {", ".join(FORMS)}.'
  )
