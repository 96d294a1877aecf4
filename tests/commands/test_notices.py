"""What a source left out is said once by every verb that opens it."""

import pytest

from tests.data.images import captioned_folder, write_images
from tests.tiny import tiny_config


@pytest.fixture
def folder(tmp_path):
  """Captioned images beside what is none."""
  captioned_folder(tmp_path / 'data', 4)
  (tmp_path / 'data' / 'x.svg').write_text('<svg/>')
  return tmp_path / 'data'


def _notes(result) -> list[str]:
  assert result.code == 0, result.err
  return [x for x in result.err.splitlines() if x.startswith('note: ')]


def test_inspect_embed_and_eval_say_it_once(
  clip_jax, workdir, folder, tmp_path
):
  taken = f"note: data '{folder}': taken for folder:{folder}"
  left_out = f"note: data 'folder:{folder}': left out 1 file: .svg 1"
  for words in (
    ('data', 'inspect', folder),
    ('data', 'inspect', folder, '--json'),
    ('data', 'dedup', folder),
    ('embed', f'--model={workdir}', f'--images={folder}',
     f'--out={tmp_path}/out.npz'),
    ('eval', f'--model={workdir}', '--task=retrieval', f'--data={folder}'),
  ):  # fmt: skip
    assert _notes(clip_jax(*words)) == [taken, left_out]


def test_who_needs_labels_is_told_why_there_are_none(
  clip_jax, workdir, tmp_path
):
  write_images(tmp_path, ['cat/a.png', 'dog/a.png', 'cover.png'])
  for task in ('zero_shot', 'retrieval'):
    result = clip_jax(
      'eval', f'--model={workdir}', f'--task={task}', f'--data={tmp_path}'
    )
    assert result.code == 2
    assert 'cover.png' in result.err.splitlines()[-1]


def test_captions_of_a_folder_may_be_its_names(clip_jax, workdir, tmp_path):
  write_images(tmp_path, ['cat/a_b.png', 'dog/c.png'])
  for captions, count in (('path', 2), ('path,filename', 4)):
    result = clip_jax(
      'data', 'inspect', tmp_path, f'--captions={captions}', '--json'
    )
    assert result.json['captions'] == count


def test_training_says_it_once(folder, capsys):
  from clip_jax.training.config import with_defaults
  from clip_jax.training.run import prepare_run

  config = tiny_config()
  config.data.train = f'folder:{folder}'
  config.evaluation.data = f'folder:{folder}'
  config.evaluation.tasks = ('retrieval',)
  prepare_run(with_defaults(config))
  assert capsys.readouterr().err.count('left out 1 file: .svg 1') == 1
