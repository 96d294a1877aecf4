"""`clip-jax info` as it is typed, and what help costs."""

import subprocess
import sys

import pytest

from clip_jax.models.config import DECODER_READS, DecoderConfig
from clip_jax.models.presets import PRESETS
from tests.golden_models import GOLDENS
from tests.tiny_run import tiny_description, write_run


def test_a_presets_published_numbers(clip_jax):
  result = clip_jax('info', '--preset=ViT-B/32')
  assert '151,277,313 parameters' in result.out
  assert '87,849,216' in result.out
  assert '63,428,096' in result.out
  assert '58.1 %' in result.out


def test_json_has_the_agreed_keys(clip_jax):
  facts = clip_jax('info', '--preset=ViT-B/32', '--json').json
  assert facts['parameters'] == 151_277_313
  assert facts['image_parameters'] == 87_849_216
  assert facts['text_parameters'] == 63_428_096
  assert facts['gflops_per_image'] == pytest.approx(8.82, abs=0.01)
  assert facts['gflops_per_text'] == pytest.approx(5.96, abs=0.01)


PUBLISHED = {
  'RN50': 102_007_137,
  'RN101': 119_688_033,
  'RN50x4': 178_300_601,
  'RN50x16': 290_979_217,
  'RN50x64': 623_258_305,
  'ViT-B/32': 151_277_313,
  'ViT-B/16': 149_620_737,
  'ViT-L/14': 427_616_513,
  'ViT-L/14@336': 427_944_193,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_papers_models_have_their_published_counts(clip_jax, name):
  shown = clip_jax('info', f'--preset={name}').out
  assert shown.startswith(f'{name}: {PUBLISHED[name]:,} parameters\n')


def test_another_image_size_of_a_preset(clip_jax):
  call = ('info', '--preset=ViT-L/14', '--json')
  facts = clip_jax(*call, '--image_size=336').json
  assert facts['parameters'] == PUBLISHED['ViT-L/14@336']
  assert facts['preprocessing']['image_size'] == 336
  assert clip_jax(*call).json['preprocessing']['image_size'] == 224


def test_a_preset_of_native_aspect(clip_jax):
  call = ('info', '--preset=google/siglip2-base-patch16-naflex')
  facts = clip_jax(*call, '--json').json
  assert facts['image_size'] is None
  assert facts['patches'] == facts['preprocessing']['max_patches'] == 256
  larger = clip_jax(*call, '--json', '--image_size=384').json
  assert larger['patches'] == larger['preprocessing']['max_patches'] == 576
  assert larger['parameters'] == facts['parameters']
  assert larger['gflops_per_image'] > 2 * facts['gflops_per_image']
  assert 'native aspect' in clip_jax(*call).out


@pytest.mark.parametrize(
  ('path', 'options', 'expected'),
  [
    ('hf_siglip', [], {'logit_bias': True, 'tokenizer': None, 'patches': 16}),
    ('open_clip_vit_gelu', [], {'tokenizer': 'clip', 'embed_dim': 24}),
    ('open_clip_resnet', [], {'patches': 4, 'image_size': 64}),
    ('open_clip_resnet', ['--image_size=96'], {'patches': 9}),
    ('archives/openai_torchscript.pt', [], {'patches': 16, 'embed_dim': 96}),
    (
      'archives/open_clip_checkpoint.pt',
      ['--activation=quick_gelu', '--heads=2,1'],
      {'vocab_size': 600},
    ),
  ],
)
def test_published_models(clip_jax, path, options, expected):
  call = ('info', f'--model={GOLDENS / path}', *options)
  facts = clip_jax(*call, '--json').json
  columns = {name: facts[name] for name in expected}
  assert columns | {'logit_bias': facts['logit_bias'] is not None} == {
    'logit_bias': False,
    **expected,
  }
  result = clip_jax(*call)
  assert result.err == ''
  assert f'{facts["parameters"]:,} parameters' in result.out
  tokenizer = facts['tokenizer'] or 'none came with it'
  assert f'tokenizer: {tokenizer}' in result.out


def test_all_is_a_row_for_each_preset(clip_jax):
  rows = clip_jax('info', '--all').out.splitlines()
  assert [row.split()[0] for row in rows[1:]] == list(PRESETS)
  assert len({len(row) for row in rows}) == 1
  names = [facts['name'] for facts in clip_jax('info', '--all', '--json').json]
  assert names == list(PRESETS)


def test_all_traces_no_model(clip_jax, monkeypatch):
  monkeypatch.setattr('jax.eval_shape', None)  # which takes seconds for each
  assert clip_jax('info', '--all').code == 0


def test_a_model(clip_jax, workdir):
  facts = clip_jax('info', f'--model={workdir}', '--json').json
  assert facts['step'] == 7
  assert facts['config'] == tiny_description().model.to_dict()
  assert facts['tokenizer'] == 'sentencepiece'
  assert facts['preprocessing']['image_size'] == 16
  shown = clip_jax('info', f'--model={workdir}').out
  assert 'trained to step 7' in shown
  assert f'{facts["parameters"]:,} parameters' in shown


@pytest.mark.parametrize('reads', DECODER_READS)
def test_a_model_with_a_decoder(clip_jax, tmp_path, reads):
  shape = {} if reads == 'pooled_image' else dict(width=32, depth=1, heads=4)
  run = write_run(tmp_path, decoder=DecoderConfig(reads, **shape))
  facts = clip_jax('info', f'--model={run}', '--json').json
  assert facts['config']['decoder']['reads'] == reads
  shown = clip_jax('info', f'--model={run}')
  assert shown.code == 0, shown.err
  assert f' {facts["decoder_parameters"]:,}\n' in shown.out


def test_wrong_calls_are_one_line(refused, workdir, tmp_path):
  refused('needs --model=REF, --preset=NAME or --all', 'info')
  refused('and one of them', 'info', '--all', f'--model={workdir}')
  refused('and one of them', 'info', '--all', '--preset=RN50')
  both = ('--preset=ViT-B/32', f'--model={workdir}')
  refused('is for a bare weight file', 'info', *both)
  refused("did you mean 'ViT-L/14'", 'info', '--preset=ViT-Z/14')
  refused('no model in', 'info', f'--model={tmp_path}')
  refused('flags only', 'info', 'ViT-B/32')


@pytest.mark.parametrize('verb', ['classify', 'embed', 'eval', 'info'])
def test_help_has_examples_and_imports_nothing_heavy(verb):
  code = (
    'import sys; from clip_jax.__main__ import main; '
    f'main(["{verb}", "--help"]); '
    'heavy = {"jax", "numpy", "flax", "tensorflow", "PIL"}; '
    'sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr
  assert 'usage:' in result.stdout
  assert result.stdout.count(f'clip-jax {verb}') >= 4
