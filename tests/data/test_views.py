"""A view is made again by the seed, the record's id and its number alone."""

import itertools

import numpy as np
import pytest

from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.images import decode_rgb
from clip_jax.data.pipeline import training_batches
from clip_jax.data.sources import open_source
from clip_jax.data.views import Views
from clip_jax.errors import UsageError
from tests.data.images import captioned_folder
from tests.data.test_pipeline import PREPROCESSING, STRONG, Digits

VIEWS = Views(count=3, seed=5)
# Its draws go on after the crop, also by numbers that the size decides on.
NOISY = Augmentation(**{**STRONG.to_dict(), 'noise': 9.0, 'erase': 0.5})


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return open_source(
    f'folder:{captioned_folder(tmp_path_factory.mktemp("x"), 10)}'
  )


def drawn(views):
  """Teachers that put into the batch what they are asked."""
  return {
    'index': np.array([x.index for x in views]),
    'view': np.array([x.view for x in views]),
  }


def batches(source, steps, **options):
  stream = training_batches(
    source,
    tokenizer=Digits(),
    preprocessing=PREPROCESSING,
    augmentation=NOISY,
    batch_size=8,
    views=VIEWS,
    teachers=drawn,
    **{'seed': 3, 'threads': 0, **options},
  )
  made = list(itertools.islice(stream, steps))
  stream.close()
  return made


def test_an_example_is_the_view_that_its_teachers_are_asked_for(source):
  examples = 0
  for batch in batches(source, 8):
    for pixels, tokens, index, view in zip(
      batch['image'],
      batch['tokens'],
      batch['index'],
      batch['view'],
      strict=True,
    ):
      record = source[int(index)]
      assert record['caption'][0].endswith(str(tokens[0]))
      expected = augment(
        decode_rgb(record['image'], PREPROCESSING),
        PREPROCESSING,
        NOISY,
        VIEWS.generator(record['id'], int(view)),
      )
      np.testing.assert_array_equal(pixels, expected)
      examples += 1
  assert examples == 64


def test_all_views_are_drawn_and_differ(source):
  views = {}
  for batch in batches(source, 30):
    for pixels, index, view in zip(
      batch['image'], batch['index'], batch['view'], strict=True
    ):
      key = int(index), int(view)
      assert views.setdefault(key, pixels.tobytes()) == pixels.tobytes()
  assert len(views) == len(source) * VIEWS.count
  assert len(set(views.values())) == len(views)


def test_another_seed_of_the_run_draws_other_views_of_the_same(source):
  one, other = (batches(source, 4, seed=seed) for seed in (3, 4))
  pixels = {}
  for batch in [*one, *other]:
    for i in range(8):
      key = int(batch['index'][i]), int(batch['view'][i])
      view = batch['image'][i].tobytes()
      assert pixels.setdefault(key, view) == view
  assert any(
    (a['index'] != b['index']).any() for a, b in zip(one, other, strict=True)
  )


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_resumed_runs_of_any_process_count_draw_the_same(source, processes):
  expected = batches(source, 6)[2:]
  parts = [
    batches(source, 4, start_step=2, process_index=i, process_count=processes)
    for i in range(processes)
  ]
  for step, batch in enumerate(expected):
    for name, array in batch.items():
      joined = np.concatenate([part[step][name] for part in parts])
      np.testing.assert_array_equal(joined, array)


def test_a_generator_depends_on_the_seed_the_record_and_the_view():
  first = VIEWS.generator('a', 0).random()
  assert VIEWS.generator('a', 0).random() == first
  others = [
    VIEWS.generator('a', 1),
    VIEWS.generator('b', 0),
    Views(3, 6).generator('a', 0),
  ]
  assert all(other.random() != first for other in others)


@pytest.mark.parametrize('count, seed', [(0, 1), (-1, 0), (2, -1)])
def test_impossible_views_are_refused(count, seed):
  with pytest.raises(UsageError, match=f'data.views={count}'):
    Views(count, seed)
