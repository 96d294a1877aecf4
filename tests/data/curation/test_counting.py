"""Words and bi-grams of texts, counted block by block."""

import pytest

from clip_jax.data.curation import counting
from clip_jax.data.curation.queries import QueryFiles, build_queries


@pytest.mark.parametrize('size', [20, 33, 1000])
def test_a_text_of_one_line_is_counted_to_its_end(tmp_path, monkeypatch, size):
  text = tmp_path / 'text8'
  text.write_text(' '.join(f'word{i}' for i in range(300)))
  monkeypatch.setattr(counting, '_BLOCK_BYTES', size)
  monkeypatch.setattr(counting, '_MAX_LINE', 16)
  blocks = counting.block_tasks([str(text)], str(tmp_path))
  assert sum(counting.count_block(x)['words'] for x in blocks) == 300
  words = dict(counting.read_counts([x.out for x in blocks]))
  assert {f'word{i}' for i in range(300)} <= words.keys()


def test_words_and_bigrams_of_texts_are_counted_in_blocks(
  tmp_path, monkeypatch
):
  lines = ['New York is a city.', 'York is old; new york is new', 'Ünder', '']
  text = tmp_path / 'text.txt'
  text.write_text('\n'.join(lines * 7), 'utf-8')
  monkeypatch.setattr(counting, '_BLOCK_BYTES', 20)
  monkeypatch.setattr(counting, '_PARTITION_BYTES', 200)
  blocks = counting.block_tasks([str(text)], str(tmp_path))
  assert len(blocks) == 20
  total = sum(counting.count_block(task)['words'] for task in blocks)
  sums = [
    counting.SumTask(
      i,
      blocks[0].partitions,
      tuple(x.out for x in blocks),
      7,
      str(tmp_path / f'sum{i}'),
    )
    for i in range(blocks[0].partitions)
  ]
  for task in sums:
    counting.add_up(task)
  counts = dict(counting.read_counts([task.out for task in sums]))
  assert total == 7 * 13
  assert counts['york'] == counts['is'] == 21
  assert counts['new york'] == 14
  assert counts['old new'] == counts['ünder'] == 7
  assert 'city york' not in counts  # of two lines
  files = QueryFiles(texts=(str(text),), min_count=14)
  queries, _ = build_queries(files, counts.items(), total)
  assert [(x.query, x.origin) for x in queries if x.origin == 'bigrams'] == [
    ('york is', 'bigrams'), ('new york', 'bigrams')
  ]  # fmt: skip
