"""The table of `optimizer.groups`: what a pattern matches, what is refused."""

import re

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.models.counting import abstract_variables
from clip_jax.training.parameter_groups import (
  ParameterGroups,
  layer_factors,
  parse_rows,
  paths_matching,
)
from clip_jax.trees import flat
from tests.tiny import TINY, TINY_RESNET, TINY_SIGLIP

PARAMS = abstract_variables(TINY)['params']
UP = 'image/transformer/blocks/mlp/up/kernel'


def groups(*rows, layer_decay=1.0, weight_decay=0.2):
  return ParameterGroups(parse_rows(rows), layer_decay, weight_decay)


def rates(*rows, **options):
  """Factors by path, of a stack as a list."""
  table = groups(*rows, **options).rates(PARAMS)
  return {name: factors.tolist() for name, factors in table.items()}


def test_without_a_table_all_parameters_are_trained_alike():
  assert set(map(str, rates().values())) == {'1.0', '[1.0, 1.0]'}
  decays = groups().weight_decays(PARAMS)
  assert all((decay == 0.2).all() for decay in decays.values())


def test_a_path_stands_for_all_that_is_under_it_and_no_more():
  result = rates(('image', 0.0), ('*', 1.0))
  assert result['image/ln_pre/scale'] == 0
  assert result[UP] == [0, 0]
  assert result['image_projection/kernel'] == 1
  assert result['text/transformer/blocks/mlp/up/kernel'] == [1, 1]


def test_the_first_row_that_matches_decides():
  result = rates(('*/bias', 0.5), ('image', 0.25), ('*', 2))
  assert result['image/ln_pre/bias'] == 0.5
  assert result['image/transformer/blocks/ln_1/bias'] == [0.5, 0.5]
  assert result['image/ln_pre/scale'] == 0.25
  assert result['logit_scale'] == 2


@pytest.mark.parametrize(
  'layers, expected',
  [
    ('[-1:]', [1, 9]),
    ('[:-1]', [9, 1]),
    ('[0]', [9, 1]),
    ('[-1]', [1, 9]),
    ('[:]', [9, 9]),
    ('[-2:1]', [9, 1]),
  ],
)
def test_blocks_of_a_stack_are_counted_as_in_python(layers, expected):
  pattern = f'image/transformer/blocks{layers}'
  result = rates((pattern, 9), ('*', 1))
  assert result[UP] == expected
  assert result['text/transformer/blocks/mlp/up/kernel'] == [1, 1]
  result = rates((f'{pattern}/mlp', 9), ('*', 1))
  assert result[UP] == expected
  assert result['image/transformer/blocks/ln_1/scale'] == [1, 1]
  result = rates((f'*blocks{layers}/mlp/*/kernel', 9), ('*', 1))
  assert result[UP] == expected
  assert result['text/transformer/blocks/mlp/up/kernel'] == expected
  assert result['text/transformer/blocks/mlp/up/bias'] == [1, 1]


def test_a_row_may_have_a_weight_decay_of_its_own():
  rows = (('image/transformer/blocks[0]', 1, 0.05), ('text', 0.5, 0), ('*', 1))
  decays = groups(*rows).weight_decays(PARAMS)
  assert decays[UP].tolist() == [0.05, 0.2]
  assert decays['text/token_embedding/embedding'] == 0
  assert decays['text_projection/kernel'] == 0.2


@pytest.mark.parametrize(
  'rows, message',
  [
    ((('image', 0.0), ('text', 1.0)),
     'no row for image_projection/kernel, logit_scale, text_projection/kernel'),
    ((('image/transformer/blocks[:-1]', 0), ('image/[a-z]*', 1), ('*', 1)),
     "'image/[a-z]*' is no pattern"),
    ((('image/transformer/blocks[:1]', 0), ('text*', 1), ('logit_scale', 1),
      ('image_projection', 1), ('image/ln*', 1), ('image/*embedding', 1)),
     'no row for image/transformer/blocks[1]/attention/out/bias'),
    ((('imge', 0.0), ('*', 1.0)), "'imge' matches no parameter; there are"),
    ((('image/transformer/blocks[7]', 0.0), ('*', 1.0)),
     "'image/transformer/blocks[7]' matches none of the 2 blocks."),
    ((('image/transformer/block[1]', 0.0), ('*', 1.0)), 'is no pattern'),
    ((('image', 0.0),), 'no row for image_projection/kernel'),
    ((('*', 0.0),), 'freezes all parameters'),
    ((('*', 1.0), ('image', 0.0)),
     "all that 'image' matches is decided by rows before it"),
  ],
)  # fmt: skip
def test_what_a_table_leaves_out_or_never_reaches_is_named(rows, message):
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    rates(*rows)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'row, message',
  [
    ('image', "'image' is no row"),
    (('image',), "('image',) is no row"),
    (('image', 'frozen'), "('image', 'frozen') is no row"),
    (('image', -1.0), 'is no row'),
    (('image', True), 'is no row'),
    (('image', 1.0, 0.1, 2), 'is no row'),
    ((7, 1.0), '7 is no pattern'),
    (('', 1.0), "'' is no pattern"),
    (('image[0]', 1.0), "'image[0]' is no pattern"),
    (('blocks[1:2:3]', 1.0), 'is no pattern'),
    (('blocks[]', 1.0), 'is no pattern'),
    (('blocks[0]/blocks[1]', 1.0), 'is no pattern'),
    (('image', 0.0, 0.1), 'a frozen parameter (factor 0) has none'),
    (('image', 1.0, -0.1), 'must be at least 0'),
  ],
)  # fmt: skip
def test_what_is_no_row_is_refused_in_one_line(row, message):
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    parse_rows((row,))
  assert '\n' not in str(caught.value)


def test_patterns_alone_choose_whole_parameters():
  leaves = flat(PARAMS)
  chosen = paths_matching(('text', '*/ln_post/*'), leaves, 'initialize_anew')
  assert 'text/transformer/blocks/mlp/up/kernel' in chosen
  assert 'image/ln_post/scale' in chosen
  assert 'text_projection/kernel' not in chosen
  for pattern in ('imge', '*blocks[0]', 'text['):
    with pytest.raises(UsageError, match=r'initialize_anew: .* no p'):
      paths_matching((pattern,), leaves, 'initialize_anew')


def test_lists_are_rows_as_json_has_them():
  assert parse_rows([['*', 1, None]]) == parse_rows((('*', 1.0),))


def test_rates_fall_from_the_head_to_the_embeddings():
  """BEiT's layer ids: embeddings 0, block i is i + 1, the head is depth + 1."""
  factors = layer_factors(flat(PARAMS), 0.5)
  for name, expected in {
    'image/patch_embedding/kernel': 0.5**3,
    'image/class_embedding': 0.5**3,
    'image/position_embedding': 0.5**3,
    'image/ln_pre/scale': 0.5**3,
    UP: [0.5**2, 0.5],
    'image/ln_post/scale': 1,
    'image_projection/kernel': 1,
    'text/token_embedding/embedding': 0.5**3,
    'text/transformer/blocks/ln_1/bias': [0.5**2, 0.5],
    'text/ln_final/scale': 1,
    'logit_scale': 1,
  }.items():
    np.testing.assert_array_equal(factors[name], expected, err_msg=name)
  assert factors.keys() == flat(PARAMS).keys()


def test_rates_fall_through_the_stages_of_a_resnet():
  factors = layer_factors(flat(abstract_variables(TINY_RESNET)['params']), 0.5)
  for name, expected in {
    'image/stem/conv1/kernel': 0.5**5,
    'image/stage1_0/conv1/kernel': 0.5**4,
    'image/stage4_0/conv1/kernel': 0.5,
    'image/attention_pool/kernel': 1,
    'image_projection/kernel': 1,
    'text/position_embedding': 0.5**3,
  }.items():
    np.testing.assert_array_equal(factors[name], expected, err_msg=name)


def test_what_pools_counts_as_the_head():
  factors = layer_factors(flat(abstract_variables(TINY_SIGLIP)['params']), 0.5)
  assert factors['image/attention_pool/probe'] == 1
  assert factors['image/attention_pool/mlp/up/kernel'] == 1


def test_the_table_and_the_decay_by_layer_multiply():
  result = rates(('image', 0.5), ('*', 1.0), layer_decay=0.5)
  assert result[UP] == [0.5**3, 0.5**2]
  assert result['text/transformer/blocks/mlp/up/kernel'] == [0.5**2, 0.5]
