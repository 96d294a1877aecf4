"""The keys of big_vision's SigLIP checkpoints (`.npz`).

These are of Flax modules too, so that arrays have our axes, with queries, keys
and values apart.

The layers of a tower are either numbered ('encoderblock_0') or, from a scan,
stacked in one array as ours are ('encoderblock').
"""

from collections.abc import Mapping

from clip_jax.interop.layouts import ALL, SAME, Row, Table, within
from clip_jax.models.config import CLIPConfig

_PREFIX = 'params/'


def stacked_towers(keys: Mapping[str, object]) -> frozenset[str]:
  """Returns the towers, of 'img' and 'txt', with their layers in one array."""
  return frozenset(
    tower
    for tower, stack in (('img', 'Transformer'), ('txt', 'Encoder_0'))
    if f'{_PREFIX}{tower}/{stack}/encoderblock/LayerNorm_0/scale' in keys
  )


def table(config: CLIPConfig, stacked: frozenset[str]) -> Table:
  """Returns the keys of a SigLIP model; `stacked` as `stacked_towers` says."""
  image, text = f'{_PREFIX}img/', f'{_PREFIX}txt/'
  pool, head = 'params/image/attention_pool', f'{image}MAPHead_0/'
  rows = [
    Row('params/logit_scale', f'{_PREFIX}t', within(1)),
    Row('params/logit_bias', f'{_PREFIX}b', within(1)),
    *_same('params/image/patch_embedding', f'{image}embedding', 'kernel'),
    Row('params/image/position_embedding', f'{image}pos_embedding', within(1)),
    *_layers('image', f'{image}Transformer/', 'img' in stacked),
    *_same('params/image/ln_post', f'{image}Transformer/encoder_norm', 'scale'),
    Row(f'{pool}/probe', f'{head}probe', within(2)),
    *_attention(f'{pool}/', f'{head}MultiHeadDotProductAttention_0/'),
    *_same(f'{pool}/ln', f'{head}LayerNorm_0', 'scale'),
    *_mlp(f'{pool}/mlp', f'{head}MlpBlock_0'),
    Row('params/text/token_embedding/embedding', f'{text}Embed_0/embedding'),
    Row('params/text/position_embedding', f'{text}pos_embedding', within(1)),
    *_layers('text', f'{text}Encoder_0/', 'txt' in stacked),
    *_same('params/text/ln_final', f'{text}Encoder_0/encoder_norm', 'scale'),
  ]
  if config.text.projection == 'affine':
    rows += _same('params/text_projection', f'{text}head', 'kernel')
  return Table("big_vision's SigLIP", rows)


def _layers(tower: str, theirs: str, stacked: bool) -> list[Row]:
  ours = f'params/{tower}/transformer/blocks/'
  block = (
    f'{theirs}encoderblock/' if stacked else f'{theirs}encoderblock_{{i}}/'
  )
  attention = f'{block}MultiHeadDotProductAttention_0/'
  return [
    *_same(f'{ours}ln_1', f'{block}LayerNorm_0', 'scale'),
    *_attention(f'{ours}attention/', attention, stacked),
    *_same(f'{ours}ln_2', f'{block}LayerNorm_1', 'scale'),
    *_mlp(f'{ours}mlp', f'{block}MlpBlock_0'),
  ]


def _attention(ours: str, theirs: str, stacked: bool = False) -> list[Row]:
  layers = (ALL,) if stacked else ()
  rows = _same(f'{ours}out', f'{theirs}out', 'kernel')
  for j, name in enumerate(('query', 'key', 'value')):
    kernel, bias = f'{theirs}{name}/kernel', f'{theirs}{name}/bias'
    rows += [
      Row(f'{ours}qkv/kernel', kernel, SAME, (*layers, ALL, j)),
      Row(f'{ours}qkv/bias', bias, SAME, (*layers, j)),
    ]
  return rows


def _mlp(ours: str, theirs: str) -> list[Row]:
  return [
    *_same(f'{ours}/up', f'{theirs}/Dense_0', 'kernel'),
    *_same(f'{ours}/down', f'{theirs}/Dense_1', 'kernel'),
  ]


def _same(ours: str, theirs: str, weight: str) -> list[Row]:
  return [Row(f'{ours}/{w}', f'{theirs}/{w}') for w in (weight, 'bias')]
