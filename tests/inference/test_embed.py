"""Embedding in parts: what is kept, what is refused, who joins."""

import collections
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.data.text_lines import TextLines
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.inference import embeddings
from clip_jax.inference.embed import embed
from clip_jax.inference.embed_folder import EmbedFolder
from clip_jax.inference.embed_job import EmbedJob
from clip_jax.inference.embeddings import open_embeddings
from clip_jax.inference.model import Model
from clip_jax.inference.reused_rows import Update
from clip_jax.progress import no_progress
from tests.inference.fakes import FakeSource
from tests.tiny import write_pairs
from tests.tiny_run import tiny_description, tiny_model, tiny_params


class Stopped(Exception):
  """Stands for whatever ends a process early."""


class Stopping(FakeSource):
  """Ends the work at a record, until `stop` is None."""

  stop: int | None = None

  def __getitem__(self, index):
    if index == self.stop:
      raise Stopped
    return super().__getitem__(index)


@pytest.fixture(scope='module')
def model():
  return tiny_model(batch_size=4)


@pytest.fixture
def job(model, tmp_path_factory):
  """Ten images, one of them corrupt, and five texts: five parts."""
  texts = tmp_path_factory.mktemp('texts') / 'texts.txt'
  texts.write_text('red\n\nbig green square\n' + 'blue circle ' * 20 + '\na\nb')
  return EmbedJob(
    model=model,
    dtype='float32',
    source=Stopping(10, corrupt=(5,)),
    captions=['caption'],
    texts=TextLines(texts),
    texts_name='texts.txt',
    max_corrupt=1,
    part_rows=4,
  )


@pytest.fixture
def run():
  """Embeds; the lines that were said are in `run.said`."""

  def run(job, out):
    return embed(job, out, progress=run.progress, say=run.said.append)

  run.said = []
  run.progress = no_progress
  return run


@pytest.fixture
def whole(job, run, tmp_path_factory):
  """The bytes of an uninterrupted job."""
  out = tmp_path_factory.mktemp('whole') / 'e.npz'
  assert run(job, out).joined
  return out.read_bytes()


def as_worker(job, index, count):
  return dataclasses.replace(job, worker=(index, count))


def interrupt(job, out, run, at=9):
  job.source.stop = at
  with pytest.raises(Stopped):
    run(job, out)
  job.source.stop = None


def test_one_go(job, run, tmp_path):
  summary = run(job, tmp_path / 'e.npz')
  assert (summary.images, summary.texts, summary.dims) == (9, 5, 16)
  assert summary.corrupt == {'5.png': 'damaged'}
  assert summary.truncated == 1
  with np.load(tmp_path / 'e.npz') as file:
    names = [f'{i}.png' for i in range(10) if i != 5]
    lines = [f'texts.txt:{i}' for i in (1, 3, 4, 5, 6)]
    assert file['ids'].tolist() == names + lines
    assert file['captions'][:3].tolist() == ['', 'number 1', '']
    assert file['captions'][-1] == 'b'
    expected = job.model.encode_text(list(job.texts))
    np.testing.assert_allclose(file['embeddings'][9:], expected, atol=1e-6)
  assert os.listdir(tmp_path) == ['e.npz']
  assert run.said == []


@pytest.mark.parametrize(
  'resizing',
  [{'resize_to': 20}, {'resize_to': (24, 18), 'resize_mode': 'squash'}],
)
def test_images_are_resized_and_cropped_once(job, run, tmp_path, resizing):
  preprocessing = Preprocessing(16, **resizing)
  described = dataclasses.replace(
    tiny_description(), preprocessing=preprocessing
  )
  model = Model(described, {'params': tiny_params()})
  source = open_source(write_pairs(tmp_path / 'pairs', 5))
  job = dataclasses.replace(job, model=model, source=source)
  out = tmp_path / 'e.npz'
  run(job, out)
  paths = [tmp_path / 'pairs' / source.id(i) for i in range(5)]
  expected = model.encode_image(paths)
  with open_embeddings(out) as table:
    np.testing.assert_allclose(table.vectors(range(5)), expected, atol=1e-6)
  evaluated = read_features(model, source, Options()).embeddings
  np.testing.assert_allclose(evaluated, expected, atol=1e-6)


def test_the_same_call_goes_on(job, run, whole, tmp_path):
  out = tmp_path / 'e.npz'
  interrupt(job, out, run)
  assert sorted(os.listdir(tmp_path)) == ['e.parts']
  assert run.said == [
    f'what is done stays in {tmp_path / "e.parts"}: the same command goes on'
  ]
  run.said.clear()
  job.source.asked.clear()
  seen = []
  run.progress = lambda items, total, unit, /, *, done=0, size=len: (
    seen.append((done, total, unit)) or items
  )
  assert run(job, out).joined
  assert run.said == ['going on after 8 of 15 records']
  assert seen == [(8, 10, 'images'), (0, 5, 'texts')]
  assert sorted(job.source.asked) == [8, 9]
  assert out.read_bytes() == whole
  assert os.listdir(tmp_path) == ['e.npz']


def test_corrupt_records_are_counted_over_interruptions(job, run, tmp_path):
  job = dataclasses.replace(job, source=Stopping(10, corrupt=(5, 9)))
  interrupt(job, tmp_path / 'e.npz', run, at=8)
  with pytest.raises(FailureError, match=r'max_corrupt_records=1 .* 5\.png'):
    run(job, tmp_path / 'e.npz')
  more = dataclasses.replace(job, max_corrupt=2)
  assert len(run(more, tmp_path / 'e.npz').corrupt) == 2


def test_an_interruption_before_the_first_part_leaves_nothing(
  job, run, tmp_path
):
  interrupt(job, tmp_path / 'e.npz', run, at=0)
  assert os.listdir(tmp_path) == []


def test_no_readable_image_leaves_nothing(job, run, tmp_path):
  job = dataclasses.replace(
    job, source=FakeSource(5, corrupt=range(5)), max_corrupt=5
  )
  with pytest.raises(FailureError, match=r'no readable image: 0\.png'):
    run(job, tmp_path / 'e.npz')
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  'change, message',
  [
    ({'dtype': 'bfloat16'}, 'the dtype is bfloat16, theirs is float32'),
    ({'captions': ['title']}, r"--captions is \['title'\]"),
    ({'source': FakeSource(11)}, 'number of records is 11, theirs is 10'),
    ({'source': None}, '--images is , theirs is fake:source'),
    ({'texts_name': 'b.txt'}, '--texts is b.txt, theirs is texts.txt'),
  ],
)
def test_another_job_is_refused(job, run, whole, tmp_path, change, message):
  interrupt(job, tmp_path / 'e.npz', run)
  with pytest.raises(UsageError, match=message) as error:
    run(dataclasses.replace(job, **change), tmp_path / 'e.npz')
  assert 'Remove that folder, or name another --out' in str(error.value)
  assert '\n' not in str(error.value)
  run(job, tmp_path / 'e.npz')
  assert (tmp_path / 'e.npz').read_bytes() == whole


def test_other_texts_of_the_same_name_are_refused(job, run, tmp_path):
  interrupt(job, tmp_path / 'e.npz', run)
  other = tmp_path / 'texts.txt'
  other.write_text('five\nother\ntexts\nin\nit')
  with pytest.raises(UsageError, match='the content of --texts is different'):
    run(dataclasses.replace(job, texts=TextLines(other)), tmp_path / 'e.npz')


def test_another_model_is_refused(job, run, tmp_path):
  interrupt(job, tmp_path / 'e.npz', run)
  params = tiny_params()
  params = {**params, 'logit_scale': params['logit_scale'] + 1}
  other = Model(
    tiny_description(), {'params': params}, origin='elsewhere', step=9
  )
  with pytest.raises(UsageError, match='the model is elsewhere at step 9'):
    run(dataclasses.replace(job, model=other), tmp_path / 'e.npz')


def with_gelu(model):
  """Returns a model of the same arrays with another activation."""
  described = model.description
  image = dataclasses.replace(described.model.image, activation='gelu')
  config = dataclasses.replace(described.model, image=image)
  described = dataclasses.replace(described, model=config)
  return Model(described, model.variables, batch_size=4)


def test_another_activation_is_another_model(job, run, tmp_path):
  out = tmp_path / 'e.npz'
  other = dataclasses.replace(job, model=with_gelu(job.model))
  interrupt(job, out, run)
  with pytest.raises(UsageError, match='activation or number of heads is diff'):
    run(other, out)
  run(job, out)
  run.said.clear()
  assert run(other, out).update is None
  assert [line.split(':')[0] for line in run.said] == [
    f'all {kind} of {out} are encoded anew' for kind in ('images', 'texts')
  ]
  run(other, tmp_path / 'anew.npz')
  assert out.read_bytes() == (tmp_path / 'anew.npz').read_bytes()


def test_parts_may_be_joined_in_the_other_format(job, run, tmp_path):
  interrupt(job, tmp_path / 'e.npz', run)
  assert run(job, tmp_path / 'e.parquet').joined
  assert run.said[-1] == 'going on after 8 of 15 records'
  assert os.listdir(tmp_path) == ['e.parquet']


def test_shares_make_the_same_file_in_any_order(job, run, whole, tmp_path):
  out = tmp_path / 'e.npz'
  for index in (2, 0):
    summary = run(as_worker(job, index, 3), out)
    assert not summary.joined
  assert (summary.shards, summary.planned) == (3, 5)
  job.source.asked.clear()
  assert run(as_worker(job, 1, 3), out).joined
  assert sorted(job.source.asked) == [4, 5, 6, 7]
  assert out.read_bytes() == whole
  assert os.listdir(tmp_path) == ['e.npz']


def test_one_process_may_finish_what_several_began(job, run, whole, tmp_path):
  run(as_worker(job, 1, 3), tmp_path / 'e.npz')
  assert run(job, tmp_path / 'e.npz').joined
  assert (tmp_path / 'e.npz').read_bytes() == whole


def test_a_worker_that_starts_again_after_the_end_does_nothing(
  job, run, whole, tmp_path
):
  out = tmp_path / 'e.npz'
  run(job, out)
  job.source.asked.clear()
  summary = run(as_worker(job, 1, 3), out)
  assert (summary.images, summary.texts, summary.joined) == (9, 5, True)
  assert (summary.corrupt, summary.truncated) == ({'5.png': 'damaged'}, 1)
  assert job.source.asked == []
  assert os.listdir(tmp_path) == ['e.npz']


def test_a_kill_after_the_join_is_not_a_new_start(job, run, whole, tmp_path):
  out = tmp_path / 'e.npz'
  run(job, out)
  (tmp_path / 'e.parts.done').mkdir()  # as a kill while it is removed leaves it
  job.source.asked.clear()
  assert run(job, out).joined
  assert job.source.asked == []
  assert out.read_bytes() == whole
  assert os.listdir(tmp_path) == ['e.npz']


def test_what_a_kill_left_of_another_job_is_removed(job, run, whole, tmp_path):
  (tmp_path / 'e.parts.done').mkdir()
  (tmp_path / 'e.parts.done' / '00000000.npz').touch()
  assert run(job, tmp_path / 'e.npz').joined
  assert (tmp_path / 'e.npz').read_bytes() == whole
  assert os.listdir(tmp_path) == ['e.npz']


@pytest.fixture
def encoded(job, monkeypatch):
  """How many images and texts went through the model."""
  counts = collections.Counter()

  def counting(encode, name):
    def counted(items):
      items = list(items)
      counts[name] += len(items)
      return encode(items)

    return counted

  for name in ('encode_image', 'encode_text'):
    encode = counting(getattr(job.model, name), name.removeprefix('encode_'))
    monkeypatch.setattr(job.model, name, encode)
  return counts


def test_the_same_call_again_encodes_nothing(job, run, encoded, tmp_path):
  out = tmp_path / 'e.npz'
  run(job, out)
  before = out.read_bytes(), out.stat().st_mtime_ns
  encoded.clear()
  summary = run(job, out)
  assert summary.update == Update(kept=14)
  assert encoded.total() == 0
  assert summary.corrupt == {'5.png': 'damaged'}
  assert (out.read_bytes(), out.stat().st_mtime_ns) == before
  assert run.said == []


class Renamed(FakeSource):
  """Images by number, under names of one's choice."""

  def __init__(self, numbers, names=None):
    super().__init__(len(numbers))
    self.numbers, self.names = numbers, names or numbers

  def id(self, index):
    return f'{self.names[index]}.png'

  def captions(self, index):
    return [f'now {self.names[index]}']

  def __getitem__(self, index):
    record = FakeSource(99)[self.numbers[index]]
    return {**record, 'id': self.id(index), 'caption': self.captions(index)}


@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
@pytest.mark.parametrize('workers', [1, 3])
def test_only_what_is_new_is_encoded(
  job, run, encoded, tmp_path, suffix, workers
):
  out = tmp_path / f'e{suffix}'
  run(job, out)
  encoded.clear()
  texts = tmp_path / 'more.txt'
  texts.write_text('first\nred\nbig green square\na\nsecond\nred\n')
  job = dataclasses.replace(
    job,
    # 20 and 21 are new, 7 is changed, 6 has another name; 1, 2, 3 are gone.
    source=Renamed([20, 0, 4, 30, 8, 9, 6, 21], [20, 0, 4, 7, 8, 9, 99, 21]),
    texts=TextLines(texts),
    texts_name='more.txt',
  )
  for index in range(workers):
    summary = run(as_worker(job, index, workers), out)
  assert summary.joined
  # Of the texts, two are gone.
  assert summary.update == Update(kept=9, new=4, changed=1, dropped=3 + 2)
  assert encoded == {'image': 3, 'text': 2}
  anew = tmp_path / f'anew{suffix}'
  run(job, anew)
  with open_embeddings(out) as table, open_embeddings(anew) as other:
    assert table.entries(range(14)) == other.entries(range(14))
    assert table.about == other.about
    every = range(14)
    np.testing.assert_allclose(
      table.vectors(every), other.vectors(every), atol=1e-6
    )
  assert run.said == []


def test_a_killed_update_goes_on(job, run, encoded, tmp_path):
  out = tmp_path / 'e.npz'
  run(job, out)
  old = out.read_bytes()
  more = dataclasses.replace(job, source=Stopping(13, corrupt=(5,)))
  encoded.clear()
  interrupt(more, out, run, at=12)
  assert out.read_bytes() == old
  assert run(more, out).update == Update(kept=14, new=3)
  assert encoded == {'image': 3, 'text': 0}
  assert os.listdir(tmp_path) == ['e.npz']


@pytest.mark.parametrize(
  'change, message',
  [
    ({'dtype': 'bfloat16'}, 'the dtype is bfloat16, theirs is float32'),
  ],
)
def test_what_was_made_otherwise_is_made_anew(
  job, run, encoded, tmp_path, change, message
):
  run(job, tmp_path / 'e.npz')
  run(dataclasses.replace(job, **change), tmp_path / 'e.npz')
  assert (
    f'all images of {tmp_path}/e.npz are encoded anew: {message}'
    in (run.said[0])
  )


def test_files_of_earlier_versions_are_made_anew(
  job, run, encoded, whole, tmp_path
):
  out = tmp_path / 'e.npz'
  run(job, out)
  with np.load(out) as file:
    arrays = {name: file[name] for name in file if name != 'digests'}
  np.savez(out, **arrays)
  encoded.clear()
  assert run(job, out).update is None
  assert encoded == {'image': 9, 'text': 5}
  assert 'it does not say what its rows were made of' in run.said[0]
  assert out.read_bytes() == whole


def test_another_file_is_replaced_with_a_word(job, run, whole, tmp_path):
  out = tmp_path / 'e.npz'
  out.write_text('junk')
  run(job, out)
  assert run.said == [
    f'{out} is not a table of embeddings, or is damaged: it is neither an .npz '
    'nor a .parquet file: it will be replaced.'
  ]
  assert out.read_bytes() == whole


def test_a_worker_of_images_that_have_changed_is_made(job, run, tmp_path):
  out = tmp_path / 'e.npz'
  run(job, out)
  changed = Stopping(10, corrupt=(5,))
  changed.outline = lambda: iter(['0.png, 5 bytes'])
  job = dataclasses.replace(job, source=changed)
  assert not run(as_worker(job, 1, 2), out).joined
  assert run(as_worker(job, 0, 2), out).update == Update(kept=14)
  assert run(as_worker(job, 1, 2), out).joined
  assert 'is there, joined from all parts' in run.said[-1]


def test_two_processes_do_not_work_on_one_shard(job, run, tmp_path):
  out = tmp_path / 'e.npz'
  folder = EmbedFolder(out)
  run(as_worker(job, 0, 2), out)
  with (
    folder.lock_worker(1, 2),
    pytest.raises(UsageError, match='another process works on --shard=1/2'),
  ):
    run(as_worker(job, 1, 2), out)
  assert run(as_worker(job, 1, 2), out).joined


def test_a_folder_of_somebody_elses_is_left_alone(job, run, tmp_path):
  folder = tmp_path / 'e.parts'
  folder.mkdir()
  (folder / 'holiday.jpg').touch()
  with pytest.raises(UsageError, match=r"in the way: it holds 'holiday\.jpg'"):
    run(job, tmp_path / 'e.npz')
  assert (folder / 'holiday.jpg').exists()


def test_a_damaged_part_is_named(job, run, whole, tmp_path):
  interrupt(job, tmp_path / 'e.npz', run)
  part = tmp_path / 'e.parts' / '00000001.npz'
  part.write_bytes(part.read_bytes()[:-50])
  with pytest.raises(FailureError, match=r'00000001\.npz is damaged') as error:
    run(job, tmp_path / 'e.npz')
  assert '\n' not in str(error.value)
  part.unlink()
  run(job, tmp_path / 'e.npz')
  assert (tmp_path / 'e.npz').read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
def test_a_kill_at_any_operation_on_files_costs_nothing(tmp_path, suffix):
  done = subprocess.run(
    [sys.executable, '-m', 'tests.inference.kill_everywhere',
     str(tmp_path), suffix],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) > 30  # kills


@pytest.mark.slow
@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
def test_memory_does_not_grow_with_the_records(tmp_path, suffix):
  peaks = []
  for records in (4000, 16_000):  # 16 and 64 MB of vectors
    done = subprocess.run(
      [sys.executable, '-m', 'tests.inference.peak_memory',
       str(records), str(tmp_path / f'{records}{suffix}')],
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks.append(int(done.stdout))
  assert peaks[1] - peaks[0] < 16e6
