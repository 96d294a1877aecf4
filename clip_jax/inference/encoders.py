"""The jitted encoders of a model: pixels and ids to unit-length features."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder, normalize, unit_length
from clip_jax.parallel.attention import attention_by_kernel
from clip_jax.parallel.mesh import make_mesh, replicated

# (variables, rows) to features.
Encode = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Encoders:
  """The jitted functions of variables and a batch; see `make_encoders`.

  Attributes:
    module: for `module.apply`, with the variables as they are trained.
    unrolled: the functions take variables in the form of `cpu_layout.unroll`.
    encode_image: uint8 [B, S, S, 3] to float32 [B, E]; here and below also
      `Patches` of uint8.
    encode_text: int32 [B, T] to float32 [B, E].
    encode_image_with_pooled: uint8 [B, S, S, 3] to the pooled features, float32
      [B, D], and what `encode_image` gives.
    image_tokens: uint8 [B, S, S, 3] to [B, L, D] after each of some blocks;
      static are the arguments of `models.image_tokens.image_tokens`.
    caption_scores: uint8 [B, S, S, 3] and the captions' int32 [P, N, T], in
      parts of N that are scored at once, to [B, P * N].
    captions: uint8 [B, S, S, 3] to int32 [B, T], which mean nothing after the
      end token.
  """

  module: DualEncoder
  unrolled: bool
  encode_image: Callable[..., jax.Array]
  encode_text: Callable[..., jax.Array]
  encode_image_with_pooled: Callable[..., tuple[jax.Array, jax.Array]]
  image_tokens: Callable[..., list[jax.Array]]
  caption_scores: Callable[..., jax.Array]
  captions: Callable[..., jax.Array]


@functools.lru_cache(maxsize=16)
def make_encoders(
  config: CLIPConfig,
  dtype: str,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
  mesh: Mesh | None,
  unroll: bool,
) -> Encoders:
  """Returns the functions that all models with these arguments share.

  Accelerators compute attention by their own kernels, where these serve.
  """
  module = DualEncoder(config, jnp.dtype(dtype))
  apply = _full_precision_apply(module)
  encode_image, encode_text = encode_functions(module, mean, std)

  def encode_image_with_pooled(variables, pixels):
    images = normalize(pixels, mean, std)
    pooled, projected = apply(variables, images, 'pooled_and_projected')
    return pooled, unit_length(projected)

  def image_tokens(variables, pixels, **options):
    images = normalize(pixels, mean, std)
    return apply(variables, images, 'image_tokens', **options)

  def seen_by_decoder(variables, pixels):
    assert config.decoder is not None
    name, images = config.decoder.reads_image, normalize(pixels, mean, std)
    no_text = jnp.zeros((1, 1), jnp.int32)
    arguments = no_text, frozenset({name})
    return apply(variables, images, 'outputs', *arguments)[name]

  def caption_scores(variables, pixels, tokens):
    seen = seen_by_decoder(variables, pixels)

    def score(part) -> jax.Array:
      return apply(variables, seen, 'caption_scores', part)

    scores = jax.lax.map(score, tokens)  # P B N
    return scores.swapaxes(0, 1).reshape(len(seen), -1)

  def captions(variables, pixels):
    """Adds the likeliest token to each caption, until all have ended."""
    from clip_jax.models.decoder import likeliest_tokens

    seen, length = (
      seen_by_decoder(variables, pixels),
      config.text.context_length,
    )
    positions = jnp.arange(length)

    def is_unfinished(carry):
      count, tokens = carry
      is_end = (tokens == config.text.end_token) & (positions < count)
      return (count < length) & ~is_end.any(axis=1).all()

    def add_token(carry):
      count, tokens = carry
      best = apply(variables, seen, likeliest_tokens, tokens)
      return count + 1, jnp.where(positions == count, best, tokens)

    nothing = jnp.zeros((len(seen), length), jnp.int32)
    return jax.lax.while_loop(is_unfinished, add_token, (0, nothing))[1]

  # Variables for a CPU are unrolled; without a mesh, all is on one device.
  kernels = contextlib.nullcontext
  if not unroll:
    kernels = functools.partial(attention_by_kernel, mesh or _default_mesh())

  def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*args, **static):
      with kernels():
        return function(*args, **static)

    if mesh is not None:  # every process gets the whole result
      options['out_shardings'] = replicated(mesh)
    return jax.jit(traced, **options)

  return Encoders(
    module=module,
    unrolled=unroll,
    encode_image=jit(encode_image),
    encode_text=jit(encode_text),
    encode_image_with_pooled=jit(encode_image_with_pooled),
    image_tokens=jit(
      image_tokens, static_argnames=('layers', 'class_token', 'final_norm')
    ),
    caption_scores=jit(caption_scores),
    captions=jit(captions),
  )


def _default_mesh() -> Mesh:
  """Returns a mesh of the device that arrays are put on."""
  device: Any = jax.config.jax_default_device  # pyright: ignore
  if not isinstance(device, jax.Device):  # the name of a platform, or none
    [device, *_] = jax.local_devices(backend=device)
  return make_mesh(devices=[device])


def encode_functions(
  module: DualEncoder,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> tuple[Encode, Encode]:
  """Returns the encoders of images and of texts, as pure functions.

  They take variables and rows: uint8 pixels [B, S, S, 3], or int32 ids [B, T].
  They return float32 features [B, E] of unit length.

  Args:
    module: float32 computes in full precision on every platform.
    mean, std: normalise the pixels.
  """
  apply = _full_precision_apply(module)

  def encode_image(variables, pixels) -> jax.Array:
    images = normalize(pixels, mean, std)
    return unit_length(apply(variables, images, 'encode_image'))

  def encode_text(variables, tokens) -> jax.Array:
    return unit_length(apply(variables, tokens, 'encode_text'))

  return encode_image, encode_text


def _full_precision_apply(module: DualEncoder) -> Callable[..., Any]:
  """Returns `module.apply` of a method, its float32 products unrounded.

  Accelerators would round them to bfloat16 or TF32.
  """
  precision = 'highest' if module.dtype == jnp.float32 else 'default'

  def apply(variables, x, method, *args, **options) -> Any:
    with jax.default_matmul_precision(precision):
      return module.apply(variables, x, *args, method=method, **options)

  return apply
