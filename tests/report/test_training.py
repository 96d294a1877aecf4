"""The report of a run, read back as a browser reads it."""

import json
import math
import re
import time

import pytest

from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.report.training import write_report
from clip_jax.training.metrics import MetricsFile
from tests.report.fakes import NAMES, CaptionedSource, FakeModel, FakeSource
from tests.report.html_page import Page

SECTIONS = (
  'headline',
  'curves',
  'images',
  'similarity',
  'nearest',
  'confused',
  'settings',
  'environment',
  'reproduce',
)
CONFIG = {
  'seed': 3,
  'tokenizer': 'sentencepiece:<b>.model',
  'data': {'train': 'tfds:emoji#train', 'batch_size': 64},
  'objective': {'name': 'softmax'},
}


@pytest.fixture
def workdir(tmp_path):
  path = tmp_path / 'a <run>'
  with MetricsFile(path) as writer:
    for step in range(10, 210, 10):
      writer.write(
        step,
        {
          'train/loss': 4.2 - step / 100,
          'train/learning_rate': 1e-3,
          'train/logit_scale': 14.3,
          'train/examples_per_second': 640.0,
        },
      )
    writer.write(100, {'eval/zero_shot/top1': 0.2, 'eval/zero_shot/top5': 0.4})
    writer.write(
      200, {'eval/zero_shot/top1': 0.4567, 'eval/zero_shot/top5': 0.9123}
    )
  (path / 'config.json').write_text(json.dumps(CONFIG))
  return path


def _read(path):
  return Page(path.read_text(encoding='utf-8'))


def test_the_page_has_all_its_sections_and_is_well_formed(workdir):
  path = write_report(workdir, FakeModel(), FakeSource())
  assert path == workdir / 'report.html'
  page = _read(path)
  sections = page.tags('header')[:1] + page.tags('section')
  assert tuple(attrs['id'] for attrs in sections) == SECTIONS
  ids = [attrs['id'] for _, attrs in page.elements if 'id' in attrs]
  assert len(ids) == len(set(ids))
  assert len(page.tags('article')) == 12
  assert len(page.tags('h1')) == 1 and len(page.tags('h2')) == 8
  assert all(attrs.get('alt') for attrs in page.tags('img'))
  assert all(attrs.get('aria-label') for attrs in page.tags('svg'))
  assert not list(workdir.glob('*.partial'))


def test_the_page_loads_nothing(workdir):
  page = _read(write_report(workdir, FakeModel(), FakeSource()))
  assert all(
    attrs['src'].startswith('data:image/') for attrs in page.tags('img')
  )
  for tag, attrs in page.elements:
    assert tag not in ('script', 'link', 'iframe', 'object', 'base')
    assert not {'srcset', 'xlink:href', 'onload'} & set(attrs)
    assert attrs.get('href', '#').startswith('#')  # within the page
  text = (workdir / 'report.html').read_text()
  assert not re.search(r'https?://|@import|url\((?!#)', text)


def test_numbers_are_those_of_metrics_jsonl(workdir):
  text = _read(write_report(workdir, FakeModel(), FakeSource())).text()
  assert 'zero-shot top-1 45.7' in text and 'zero-shot top-5 91.2' in text
  assert 'steps 200of 64 pairs each' in text
  assert 'parameters 1717' in text
  assert 'images/s 640median' in text
  # 200 steps of 64 pairs at 640 pairs a second.
  assert 'training time 20 s' in text
  assert 'Loss nats a pair 2.2 ' in text


def test_texts_of_others_are_escaped(workdir):
  evil = '<script>alert("x")</script> & \'co\''
  texts = [*NAMES, evil, f'{evil} two', f'{evil} three']
  path = write_report(
    workdir, FakeModel(), FakeSource(texts), command='echo "<i>" && ls'
  )
  raw = path.read_text()
  assert '<script' not in raw and '<i>"' not in raw and '<b>.model' not in raw
  page = _read(path)
  assert page.tags('script') == []
  assert 'a <run>' in page.text() and 'echo "<i>" && ls' in page.text()
  assert 'sentencepiece:<b>.model' in page.text()


def test_every_image_and_name_is_encoded_once(workdir):
  model = FakeModel()
  write_report(workdir, model, FakeSource(), templates=('a {}',))
  kinds = [call[0] for call in model.calls]
  assert kinds.count('image') == 1
  texts = [count for kind, count in model.calls if kind == 'text']
  assert texts.count(len(NAMES)) == 1
  assert all(count <= 8 for count in texts if count != len(NAMES))


def test_an_evaluation_spares_the_names_and_gives_the_same_page(workdir):
  source = FakeSource(broken={3})
  evaluation = find_evaluator('zero_shot')(
    FakeModel(), dataset_of(source), Options()
  )
  model = FakeModel()
  pages = [
    write_report(workdir, encoder, source, evaluation=given).read_text()
    for encoder, given in ((model, evaluation), (FakeModel(), None))
  ]
  assert pages[0] == pages[1]
  assert ('text', len(NAMES)) not in model.calls


def test_the_same_seed_gives_the_same_page(workdir):
  def body(seed):
    path = write_report(workdir, FakeModel(), FakeSource(), seed=seed)
    return path.read_text()

  assert body(0) == body(0)
  assert body(0) != body(1)


def test_a_large_source_is_drawn_from(workdir):
  model = FakeModel()
  page = _read(write_report(workdir, model, FakeSource(), examples=10))
  assert ('image', 10) in model.calls
  assert '35 examples, of which this page uses 10.' in page.text()


def test_without_labels_captions_are_ranked_for_each_image(workdir):
  source = FakeSource(labelled=False)
  page = _read(write_report(workdir, FakeModel(), source))
  assert len(page.tags('article')) == 12
  text = page.text()
  assert 'Held-out images and the captions they are given' in text
  assert 'of 35 held-out images their right caption, chosen among 35' in text
  assert 'guessing would get 2.9 % right.' in text
  assert 'Captions that are taken for one another' in text
  assert 'Caption given' in text and 'no right names' not in text
  assert '--task=retrieval' in text
  assert any(a.get('class') == 'matrix' for a in page.tags('table'))


def test_queries_are_whole_captions(workdir):
  source = CaptionedSource(labelled=False)
  page = (write_report(workdir, FakeModel(), source)).read_text()
  asked = re.findall(r'class="asked">“(.*?)”', page)
  assert len(asked) == 4 == len(set(asked))
  assert set(asked) <= {f'first of {i}' for i in range(35)}


def test_of_ten_names_or_fewer_the_first_five_are_not_told(workdir):
  text = _read(
    write_report(workdir, FakeModel(), FakeSource(NAMES[:10]))
  ).text()
  assert 'first five' not in text and 'top-5' not in text
  assert 'guessing would get 10.0 % right.' in text
  text = _read(
    write_report(workdir, FakeModel(), FakeSource(NAMES[:11]))
  ).text()
  assert 'one of its first five' in text and 'zero-shot top-5' in text


def test_training_pairs_and_chance_stand_beside_what_is_held_out(workdir):
  with MetricsFile(workdir) as writer:
    for step, held_out, trained in ((100, 2.5, 2.4), (200, 3.25, 0.5)):
      writer.write(
        step,
        {
          'eval/loss/loss': held_out,
          'eval/train_loss/loss': trained,
          'eval/retrieval/image_to_text_r1': 0.25,
          'eval/retrieval/image_to_text_r1_chance': 0.0125,
          'eval/train_retrieval/image_to_text_r1': 0.875,
        },
      )
  path = write_report(workdir, FakeModel(), FakeSource())
  text = _read(path).text()
  assert 'retrieval; training pairs 87.5 %; chance 1.2 %' in text
  assert 'held-out loss 3.25training pairs 0.50' in text
  assert 'steps 2.2 held out 3.25 training pairs 0.5' in text
  assert 'held out 25.0 % training pairs 87.5 %' in text
  assert (
    'The held-out loss was lowest at step 100, with 2.50, and is 3.25 at the '
    'end: since then the model has learned its training pairs by heart, whose '
    'loss is 0.50.'
  ) in text
  assert text.count('chance 1.2 %') == 2  # in words, and a line of the figure


def test_without_texts_or_numbers_there_is_a_page_all_the_same(tmp_path):
  source = FakeSource(['', '', ''], labelled=False)
  text = _read(write_report(tmp_path, FakeModel(), source)).text()
  assert 'fewer than two different texts' in text
  assert 'no texts to ask with' in text
  assert 'metrics.jsonl is empty' in text
  assert 'Before training' in text


@pytest.mark.parametrize('source', [None, FakeSource(['a'], broken={0})])
def test_without_examples_there_is_a_page_all_the_same(workdir, source):
  model = FakeModel()
  text = _read(write_report(workdir, model, source)).text()
  assert 'After 200 steps. No held-out data were given.' in text
  assert 'There are no held-out images.' in text
  assert 'Trained on tfds:emoji#train' in text
  assert ('clip-jax eval' in text) == (source is not None)
  assert model.calls == []


def test_numbers_that_are_not_finite_do_not_break_the_page(workdir):
  with MetricsFile(workdir) as writer:
    writer.write(
      210,
      {
        'train/loss': math.nan,
        'train/grad_norm': math.inf,
        'train/examples_per_second': math.nan,
      },
    )
  text = _read(write_report(workdir, FakeModel(), FakeSource())).text()
  assert 'Loss nats a pair nan' in text


def test_images_that_cannot_be_read_are_left_out(workdir):
  model = FakeModel()
  write_report(workdir, model, FakeSource(broken={0, 5}))
  assert ('image', len(NAMES) - 2) in model.calls


def test_a_page_that_is_there_is_replaced(workdir):
  (workdir / 'report.html').write_text('old')
  write_report(workdir, FakeModel(), FakeSource())
  assert (workdir / 'report.html').read_text().startswith('<!doctype html>')


@pytest.mark.slow
def test_thousands_of_names_take_seconds(workdir):
  texts = [f'{i} {name}' for i in range(115) for name in NAMES]
  source = FakeSource(texts)
  start = time.process_time()  # others may keep the machine busy
  write_report(workdir, FakeModel(), source, examples=450)
  assert time.process_time() - start < 15


def test_examples_that_were_trained_on_are_said_to_be(workdir):
  source = FakeSource()
  said = 'among those that were trained on'
  assert said not in write_report(workdir, FakeModel(), source).read_text()
  source.spec = json.loads((workdir / 'config.json').read_text())['data'][
    'train'
  ]
  assert said in write_report(workdir, FakeModel(), source).read_text()
