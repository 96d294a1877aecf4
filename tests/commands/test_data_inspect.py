"""`clip-jax data inspect` as it is typed."""

from tests.data.images import captioned_folder


def test_a_sample_is_said_to_be_one(clip_jax, tmp_path):
  spec = f'folder:{captioned_folder(tmp_path, 12)}'
  result = clip_jax('data', 'inspect', spec, '--sample=5', '--seed=2')
  assert result.code == 0, result
  assert 'records read: 5' in result.out.splitlines()
  assert 'drawn at random (seed 2)' in result.out
  assert 'captions truncated: 0 (0.00 %)' in result.out.splitlines()
  assert result.err == (
    f'note: data {spec!r}: 12 records, of which a sample of 5 was read: '
    '--sample=N reads more, --sample=0 all.\n'
  )
  whole = clip_jax('data', 'inspect', spec, '--json', '--tokenizer=').json
  assert whole['records'] == whole['captions'] == 12
  assert 'records_read' not in whole
  assert 'caption_tokens' not in whole


def test_a_mixture_is_one_data_set(clip_jax, tmp_path):
  parts = [f'folder:{captioned_folder(tmp_path / x, 3)}' for x in 'ab']
  summary = clip_jax('data', 'inspect', '::'.join(parts), '--json').json
  assert summary['parts'] == dict.fromkeys(parts, 3)
  assert summary['copied_images'] == 3


def test_wrong_calls_are_one_line(refused, tmp_path):
  refused('data inspect takes one SPEC', 'data', 'inspect')
  spec = f'folder:{captioned_folder(tmp_path, 1)}'
  refused('no such folder', 'data', 'inspect', f'{spec}::nowhere')
  refused('--sample', 'data', 'inspect', spec, '--sample=-1')
