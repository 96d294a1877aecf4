"""A teacher's features are those of each view, and go to the right record."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.captions import CaptionRule
from clip_jax.data.examples import DrawnView
from clip_jax.data.images import decode_rgb
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.data.views import Views
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.embed_views import ViewsJob, embed_views
from clip_jax.inference.teacher_features import (
  TeacherFeatures,
  describe_views,
)
from clip_jax.progress import no_progress
from tests.tiny import write_pairs
from tests.tiny_run import tiny_model

AUGMENTATION = Augmentation(crop_scale=(0.4, 1.0), rotate=15.0, noise=8.0)
PREPROCESSING = Preprocessing(image_size=16, background='white', exif=True)
VIEWS = Views(3, 7)
OF_VIEWS = describe_views(VIEWS, AUGMENTATION, PREPROCESSING)


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  specs = [write_pairs(folder / 'a', 9), write_pairs(folder / 'b', 4)]
  (folder / 'a/003.txt').write_text('one caption\nanother caption\n')
  (folder / 'a/005.png').write_bytes(b'no image')
  return [open_source(spec) for spec in specs]


@pytest.fixture(scope='module')
def job(sources):
  return ViewsJob(
    model=tiny_model(batch_size=8),
    dtype='float32',
    sources=sources,
    captions=('caption',),
    rule=None,
    views=VIEWS,
    augmentation=AUGMENTATION,
    preprocessing=PREPROCESSING,
    decode='fast',
    max_corrupt=1,
    part_rows=4,
  )


def make(job, folder):
  return embed_views(job, folder, progress=no_progress, say=print)


@pytest.fixture(scope='module')
def made(job, tmp_path_factory):
  folder = tmp_path_factory.mktemp('teachers') / 'teacher'
  return folder, make(job, folder)


def drawn(sources, index, view, caption):
  first = len(sources[0])
  number, own = (0, index) if index < first else (1, index - first)
  return DrawnView(index, sources[number].id(own), view, caption)


def records(sources):
  """The records that can be read, with their indices among all."""
  everything = [(s, i) for s in sources for i in range(len(s))]
  for index, (source, own) in enumerate(everything):
    if index != 5:
      yield index, source[own]


def test_features_are_those_of_each_view_and_caption(job, sources, made):
  folder, summary = made
  teacher = TeacherFeatures(folder)
  assert summary.records == 13
  assert list(summary.corrupt) == [sources[0].id(5)]
  assert (summary.shards, summary.planned) == (4, 4)
  assert teacher.logit_scale == pytest.approx(job.model.logit_scale)
  for index, record in records(sources):
    image = decode_rgb(record['image'], PREPROCESSING)
    pixels = [
      augment(
        image, PREPROCESSING, AUGMENTATION, VIEWS.generator(record['id'], view)
      )
      for view in range(VIEWS.count)
    ]
    expected = job.model.encode_image(pixels)
    texts = job.model.encode_text(record['caption'])
    for view, caption in enumerate(['', *record['caption']][: VIEWS.count]):
      if not caption:
        caption = record['caption'][0]
      images, stored = teacher.read([drawn(sources, index, view, caption)])
      np.testing.assert_allclose(images[0], expected[view], atol=1e-6)
      right = texts[record['caption'].index(caption)]
      np.testing.assert_allclose(stored[0], right, atol=1e-6)


def test_prompts_around_captions_are_what_training_draws(
  job, sources, tmp_path
):
  rule = CaptionRule(templates=('a {}', 'no {}'), drop='another')
  make(dataclasses.replace(job, rule=rule), tmp_path / 'teacher')
  teacher = TeacherFeatures(tmp_path / 'teacher')
  prompts = ['a one caption', 'no one caption']
  expected = job.model.encode_text(prompts)
  for prompt, features in zip(prompts, expected, strict=True):
    _, (found,) = teacher.read([drawn(sources, 3, 0, prompt)])
    np.testing.assert_allclose(found, features, atol=1e-6)
  for other in ('one caption', 'a another caption'):
    with pytest.raises(FailureError, match='does not have the caption'):
      teacher.read([drawn(sources, 3, 0, other)])


def test_reading_goes_on_in_another_process(sources, made):
  teacher = TeacherFeatures(made[0])
  view = drawn(sources, 12, 2, 'picture number 3')
  before = teacher.read([view])
  after = pickle.loads(pickle.dumps(teacher)).read([view])
  np.testing.assert_array_equal(before, after)


def test_the_same_job_makes_what_is_missing_and_no_other_does(
  job, made, tmp_path
):
  folder = tmp_path / 'teacher'
  shutil.copytree(made[0], folder)
  part = folder / '00000002.npz'
  before = part.read_bytes()
  part.unlink()
  with pytest.raises(UsageError, match=r'1 of 4 parts are missing'):
    TeacherFeatures(folder)
  assert make(dataclasses.replace(job, part_rows=8), folder).shards == 4
  assert part.read_bytes() == before
  other = dataclasses.replace(job, views=Views(3, 8))
  with pytest.raises(UsageError, match=r'another job: .*data\.view_seed'):
    make(other, folder)
  with pytest.raises(UsageError, match=r'data\.views is 2, theirs is 3'):
    make(dataclasses.replace(job, views=Views(2, 7)), folder)


def test_workers_share_the_parts(job, made, tmp_path):
  for index in range(2):
    summary = make(
      dataclasses.replace(job, worker=(index, 2)), tmp_path / 'teacher'
    )
    assert summary.shards == 2 * (index + 1)
  for path in sorted(made[0].glob('*.npz')):
    assert (tmp_path / 'teacher' / path.name).read_bytes() == path.read_bytes()


def test_half_the_bytes_hold_bfloat16_features(job, sources, tmp_path, made):
  half = dataclasses.replace(
    job, dtype='bfloat16', model=tiny_model(dtype='bfloat16', batch_size=8)
  )
  make(half, tmp_path / 'teacher')
  teacher, whole = TeacherFeatures(tmp_path / 'teacher'), made[0]
  view = drawn(sources, 0, 1, 'picture number 0')
  for ours, theirs in zip(
    teacher.read([view]), TeacherFeatures(whole).read([view]), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_features_of_something_else_are_refused(sources, made, tmp_path):
  teacher = TeacherFeatures(made[0])
  teacher.check(sources, ['caption'], VIEWS, OF_VIEWS)
  teacher.check(sources, ['caption'], Views(2, 7), OF_VIEWS)
  for views, augmentation, message in (
    (Views(4, 7), AUGMENTATION, 'has 3 views of each record'),
    (Views(3, 8), AUGMENTATION, r'data\.view_seed=8, 7 there'),
    (VIEWS, Augmentation(rotate=3.0), r'data\.augment\.rotate=3.0, 15.0 there'),
  ):
    of_views = describe_views(views, augmentation, PREPROCESSING)
    with pytest.raises(UsageError, match=message):
      teacher.check(sources, ['caption'], views, of_views)
  with pytest.raises(UsageError, match=r"captions 'title' of data\.captions"):
    teacher.check(sources, ['title'], VIEWS, OF_VIEWS)
  with pytest.raises(UsageError, match=r'9 and 4 records, .* has 4 and 9'):
    teacher.check(sources[::-1], ['caption'], VIEWS, OF_VIEWS)
  others = [open_source(write_pairs(tmp_path / 'x', 9)), sources[1]]
  for image in (tmp_path / 'x').iterdir():
    image.rename(image.with_name(f'x{image.name}'))
  others[0] = open_source(f'folder:{tmp_path / "x"}')
  with pytest.raises(UsageError, match='features of other data: its record 0'):
    teacher.check(others, ['caption'], VIEWS, OF_VIEWS)


def test_a_view_of_another_record_or_caption_is_refused(sources, made):
  teacher = TeacherFeatures(made[0])
  right = drawn(sources, 2, 0, 'picture number 2')
  for view, message in (
    (right._replace(id='b'), "is not 'b'"),
    (right._replace(caption='new'), "does not have the caption 'new'"),
    (drawn(sources, 5, 0, 'picture number 5'), 'could not be read then'),
  ):
    with pytest.raises(FailureError, match=message):
      teacher.read([right, view])


def test_a_damaged_part_is_named(sources, made, tmp_path):
  folder = tmp_path / 'teacher'
  shutil.copytree(made[0], folder)
  part = folder / '00000000.npz'
  part.write_bytes(part.read_bytes()[:200])
  with pytest.raises(FailureError, match=r'00000000\.npz'):
    TeacherFeatures(folder).read([drawn(sources, 0, 0, 'picture number 0')])
  (folder / 'manifest.json').write_text('{}')
  with pytest.raises(FailureError, match=r'manifest\.json'):
    TeacherFeatures(folder)
  with pytest.raises(UsageError, match='no features of a teacher'):
    TeacherFeatures(tmp_path)


def test_too_many_unreadable_images_stop_it(job, tmp_path):
  with pytest.raises(FailureError, match='max_corrupt_records=0'):
    make(dataclasses.replace(job, max_corrupt=0), tmp_path / 'teacher')


def test_a_teacher_of_other_images_sees_the_same_crops(sources, tmp_path):
  """Its views are as large as its images: nothing is scaled up or down."""
  pixels = np.zeros((64, 64, 3), np.uint8)
  pixels[:, 32:] = 255
  Image.fromarray(pixels).save(tmp_path / 'edge.png')
  image = decode_rgb(tmp_path / 'edge.png', PREPROCESSING)
  crop = Augmentation(crop_scale=(0.2, 0.6), rotate=20.0)
  for view in range(5):
    small, large = (
      augment(
        image, PREPROCESSING.of_size(size), crop, VIEWS.generator('x', view)
      )
      for size in (16, 32)
    )
    shrunk = large.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 12
