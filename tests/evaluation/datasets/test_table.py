"""The table of data sets: complete, well formed, and marked where unsure."""

import pytest

from clip_jax.evaluation.datasets.table import DATASETS, DatasetFacts
from clip_jax.evaluation.datasets.targets import (
  CAPTION_TARGETS,
  CSV_TARGETS,
  TFDS_TARGETS,
)

# Train with validation, and test (paper, table 9).
SIZES = {
  'food101': (75_750, 25_250),
  'cifar10': (50_000, 10_000),
  'cifar100': (50_000, 10_000),
  'birdsnap': (42_283, 2_149),
  'sun397': (19_850, 19_850),
  'stanford_cars': (8_144, 8_041),
  'fgvc_aircraft': (6_667, 3_333),
  'voc2007': (5_011, 4_952),
  'dtd': (3_760, 1_880),
  'oxford_pets': (3_680, 3_669),
  'caltech101': (3_060, 6_085),
  'flowers102': (2_040, 6_149),
  'mnist': (60_000, 10_000),
  'fer2013': (32_140, 3_574),
  'stl10': (1_000, 8_000),
  'eurosat': (10_000, 5_000),
  'resisc45': (3_150, 25_200),
  'gtsrb': (26_640, 12_630),
  'kitti_distance': (6_770, 711),
  'country211': (43_200, 21_100),
  'patch_camelyon': (294_912, 32_768),
  'ucf101': (9_537, 1_794),
  'kinetics700': (494_801, 31_669),
  'clevr_counts': (2_000, 500),
  'hateful_memes': (8_500, 500),
  'rendered_sst2': (7_792, 1_821),
  'imagenet': (1_281_167, 50_000),
}

METRICS = {
  'mean_per_class': {
    'fgvc_aircraft', 'oxford_pets', 'caltech101', 'flowers102',
  },
  'map_11_point': {'voc2007'},
  'roc_auc': {'hateful_memes'},
  'mean_top1_top5': {'kinetics700'},
}  # fmt: skip


def test_the_groups_are_complete():
  groups = [row.group for row in DATASETS.values()]
  assert {x: groups.count(x) for x in set(groups)} == {
    'paper': 27, 'shift': 7, 'retrieval': 2, 'bias': 4, 'local': 5,
  }  # fmt: skip
  assert all(row.name == name for name, row in DATASETS.items())


def test_the_metrics_are_those_of_table_9():
  for metric, names in METRICS.items():
    assert {x.name for x in DATASETS.values() if x.metric == metric} == names
  others = set(DATASETS) - set().union(*METRICS.values())
  assert {DATASETS[x].metric for x in others} == {'accuracy', None}


@pytest.mark.parametrize('row', DATASETS.values(), ids=DATASETS)
def test_a_spec_is_of_tfds_or_below_the_users_folder(row: DatasetFacts):
  assert row.test
  for spec in filter(None, (row.train, row.validation, row.test)):
    scheme, _, location = spec.partition(':')
    if scheme == 'tfds':
      name, mark, split = location.partition('#')
      assert name and mark and split
    else:
      assert scheme in ('folder', 'csv')
      folder = 'fairface' if row.group == 'bias' else row.name
      assert location.startswith(f'{{root}}/{folder}')
    assert (row.group == 'local') <= (scheme == 'tfds')
  assert len({row.train, row.validation, row.test} - {None}) == sum(
    spec is not None for spec in (row.train, row.validation, row.test)
  )


def test_a_derived_label_is_explained():
  derived = {x.name for x in DATASETS.values() if x.target != 'label'}
  assert derived == {
    'voc2007', 'kitti_distance', 'clevr_counts', 'emoji_skin_tones',
    'emoji_skin_tones_grey', 'emoji_people', 'fairface_race',
    'fairface_gender', 'fairface_age', 'fairface_race_gender',
  }  # fmt: skip
  assert derived == {
    name
    for name, x in DATASETS.items()
    if x.target in {**TFDS_TARGETS, **CSV_TARGETS, **CAPTION_TARGETS}
  }
  assert all(DATASETS[name].note for name in derived)


def test_a_shift_is_of_a_data_set_with_its_classes():
  shifts = {x.name: x.shift_of for x in DATASETS.values() if x.shift_of}
  assert shifts == {
    'imagenet_v2': 'imagenet',
    'imagenet_r': 'imagenet',
    'imagenet_a': 'imagenet',
    'imagenet_sketch': 'imagenet',
    'objectnet': 'imagenet',
    'imagenet_vid_robust': 'imagenet',
    'ytbb_robust': 'imagenet',
    'emoji_skin_tones_grey': 'emoji_skin_tones',
  }
  assert set(shifts.values()) <= set(DATASETS)


def test_uncertain_facts_are_marked():
  unsure = {x.name: x.uncertain for x in DATASETS.values() if x.uncertain}
  assert unsure == {
    'fer2013': ('classes', 'train_size', 'test_size'),
    'country211': ('train_size',),
    'ucf101': ('test_size',),
    'imagenet_a': ('test_size',),
    'objectnet': ('test_size',),
  }


def test_the_sizes_are_those_of_the_paper():
  sizes = {x.name: x.sizes for x in DATASETS.values() if x.group == 'paper'}
  assert sizes == SIZES
