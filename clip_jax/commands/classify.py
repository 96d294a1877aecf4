"""Labels images with names of your choice, without training for them.

usage:
  clip-jax classify --model=REF --labels="NAME,NAME,…" [--templates=…] IMAGE…

examples:
  clip-jax classify --model=runs/emoji --labels="red apple,green apple" a.png
  clip-jax classify --model=runs/emoji --labels=@names.txt --top=1 photos
  clip-jax classify --model=REF --labels="cat,dog" --csv photos > labels.csv
  find photos -name '*.jpg' | clip-jax classify --model=REF --labels="a,b" -
  clip-jax classify --model=REF --labels="cat,dog" \\
      --templates="a photo of a {}." --templates="a drawing of a {}." pet.jpg
  clip-jax classify --model=REF --labels="cat,dog" --json pet.jpg

An IMAGE is a file, a folder of them, a data set (SCHEME:LOCATION[#SPLIT]), or -
for a list of these on stdin, one a line. What cannot be read is named on
stderr, and the exit code is 1. With --top=1, each image takes one line. With
--csv it does as well: its name, then its --top labels and their probabilities.

The probabilities of an image sum to 1 over the labels, unless --independent. A
label that is given twice counts once. Templates are averaged; published models
are best with "a photo of a {}.", and one that was trained on plain names with
the default.
"""

import csv
import itertools
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import (
  UsageError,
  first_few,
  one_line,
  print_notes,
  print_warnings,
)
from clip_jax.files import expand_path
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.inference.classify_images import ImageSet, LabelledImage

_BAR = 24  # characters


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  flags.DEFINE_string(
    'labels',
    None,
    'names separated by commas, or @FILE with one a line',
    flag_values=values,
  )
  common_flags.define_templates(values)
  flags.DEFINE_integer(
    'top', 5, 'show so many labels of each image', flag_values=values
  )
  flags.DEFINE_bool(
    'independent',
    False,
    'each label by itself (SigLIP): a sigmoid, not a softmax over the labels',
    flag_values=values,
  )
  common_flags.define_images(values)
  flags.DEFINE_bool('csv', False, 'print a line an image', flag_values=values)
  flags.DEFINE_bool(
    'json', False, 'print one JSON document, all labels', flag_values=values
  )


def run(values: flags.FlagValues, words: list[str]) -> int:
  """Prints each image's labels, the most probable first.

  Returns:
    The exit code: 1 where an image could not be read.
  """
  model_flags.reference_of(values)
  labels = _parse_labels(values)
  templates = common_flags.templates_of(values)
  if values.top < 1:
    raise UsageError(f'--top={values.top} must be at least 1.')
  if values.csv and values.json:
    raise UsageError('--csv and --json: choose one.')
  items = _parse_words(words)

  from clip_jax.inference.classify_images import (
    classify_images,
    count_images,
    read_images,
  )

  errors: list[str] = []

  def report(error: str) -> None:
    errors.append(error)
    print(f'error: {error}', file=sys.stderr)

  results = classify_images(
    model_flags.load_model(values),
    show_progress(read_images(items), count_images(items), 'images'),
    labels,
    templates,
    independent=values.independent,
    on_error=report,
  )
  if values.json:
    printing.print_json(
      [{'image': name, 'labels': labels} for name, labels in results]
    )
  elif values.csv:
    _print_csv(results, min(values.top, len(labels)))
  else:
    _print(results, values.top)
  return 1 if errors else 0


def _parse_labels(values: flags.FlagValues) -> list[str]:
  """Returns the labels, each once.

  Raises:
    UsageError: there are none, or one is empty.
  """
  if values.labels is None:
    raise UsageError('no --labels: give names, as in --labels="cat,dog".')

  from clip_jax.inference.classifier import check_labels

  labels = common_flags.words_of('labels', values.labels)
  check_labels(labels)
  if len(labels) == 1 and os.path.isfile(labels[0]):
    raise UsageError(
      f'--labels={labels[0]} is a file: for the names in it, write '
      f'--labels=@{labels[0]}.'
    )
  unique = list(dict.fromkeys(labels))
  if len(unique) == 1 and not values.independent:
    print_notes(
      [
        f'{unique[0]!r} is the only label, and so has all of the probability; '
        'name what else it could be, or try --independent.'
      ]
    )
  if len(unique) < len(labels):
    repeated = [x for x in unique if labels.count(x) > 1]
    names = first_few([*map(repr, repeated)])
    print_warnings([f'given more than once, and counted once: {names}.'])
  return unique


def _parse_words(words: list[str]) -> 'list[str | ImageSet]':
  """Returns the files, folders and data sets that the words name.

  Raises:
    UsageError: there is nothing, a word is a URL, the only word names nothing,
      or a data set cannot be opened.
  """
  if not words:
    raise UsageError(
      'no images: name files, folders or data sets after the flags.'
    )

  from clip_jax.inference.classify_images import ImageSet
  from clip_jax.inference.inputs import refuse_url

  items: list[str | ImageSet] = []
  for word in words:
    if word == '-':
      items += [_parse_word(line) for line in _lines_of_stdin()]
      continue
    item = _parse_word(word, alone=len(words) == 1)
    if isinstance(item, str) and not os.path.lexists(item):
      refuse_url(item)
      if len(words) == 1:
        raise UsageError(f'no file {item}.')
    items.append(item)
  print_notes(
    line for x in items if isinstance(x, ImageSet) for line in x.source.notices
  )
  return items


def _parse_word(word: str, alone: bool = False) -> 'str | ImageSet':
  """Returns an image's path, or the set that a folder's path or a SPEC names.

  Args:
    alone: it is the only word, and may be the path of a table or a split, too;
      among others a table may be a stray file, as of `photos/*`.
  """
  from clip_jax.data.sources import SCHEMES, open_source
  from clip_jax.inference.classify_images import ImageSet

  path = expand_path(word)
  if os.path.isdir(path):
    return ImageSet(open_source(f'folder:{path}'), path)
  if os.path.lexists(path):
    is_set = alone and path.lower().endswith(('.csv', '.tsv'))
  else:
    folder = path.rpartition('#')[0]  # with a split behind it
    is_set = word.partition(':')[0] in SCHEMES
    is_set = is_set or (alone and os.path.isdir(folder))
  return ImageSet(open_source(word), '') if is_set else path


def _lines_of_stdin() -> list[str]:
  """Returns the lines of stdin, or what a NUL separates.

  They may be names of files, in any bytes.

  Raises:
    UsageError: there are none.
  """
  data = sys.stdin.buffer.read()
  lines = data.split(b'\0') if b'\0' in data else data.splitlines()
  names = [os.fsdecode(line) for line in lines if line.strip()]
  if not names:
    raise UsageError('-: stdin is empty; give it an image a line.')
  return names


def _ranked(labels: dict[str, float], top: int) -> list[tuple[str, float]]:
  return sorted(labels.items(), key=lambda x: -x[1])[:top]


def _print(results: 'Iterable[LabelledImage]', top: int) -> None:
  for image, labels in results:
    name, width = one_line(image), max(map(len, labels))
    ranked = _ranked(labels, top)
    if top == 1:
      label, probability = ranked[0]
      print(f'{100 * probability:5.1f} %  {label:<{width}}  {name}')
      continue
    print(name)
    for label, probability in ranked:
      bar = '█' * round(_BAR * probability)
      print(f'  {100 * probability:5.1f} %  {label:<{width}}  {bar}'.rstrip())


def _print_csv(results: 'Iterable[LabelledImage]', top: int) -> None:
  rows = csv.writer(sys.stdout, lineterminator='\n')
  more = [
    f'{x}_{i}' for i in range(2, top + 1) for x in ('label', 'probability')
  ]
  rows.writerow(['image', 'label', 'probability', *more])
  for name, labels in results:
    cells = [(x, f'{p:.6g}') for x, p in _ranked(labels, top)]
    rows.writerow([name, *itertools.chain(*cells)])
