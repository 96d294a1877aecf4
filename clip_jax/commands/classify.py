"""Labels pictures with names of your choice, without training for them.

usage:
  clip-jax classify --model=REF --labels="NAME,NAME,…" [--templates=…] IMAGE…

examples:
  clip-jax classify --model=runs/emoji --labels="red apple,green apple" a.png
  clip-jax classify --model=runs/emoji --labels=@names.txt --top=3 *.png
  clip-jax classify --model=REF --labels="cat,dog" \\
      --templates="a photo of a {}." --templates="a drawing of a {}." pet.jpg
  clip-jax classify --model=REF --labels="cat,dog" --json pet.jpg

The probabilities of a picture sum to 1 over the labels, unless --independent.
Templates are averaged; published models are best with "a photo of a {}.", and
one that was trained on plain names with the default.
"""

import os

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import UsageError
from clip_jax.files import typed_place

_BAR = 24  # characters


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  common_flags.define_model(values)
  flags.DEFINE_string(
    'labels',
    None,
    'names separated by commas, or @FILE with one a line',
    flag_values=values,
  )
  common_flags.define_templates(values)
  flags.DEFINE_integer(
    'top', 5, 'show so many labels of each picture', flag_values=values
  )
  flags.DEFINE_bool(
    'independent',
    False,
    'each label by itself (SigLIP): a sigmoid, not a softmax over the labels',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'json', False, 'print one JSON document, all labels', flag_values=values
  )


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Prints each picture's labels, the most probable first."""
  common_flags.reference_of(values)
  if values.labels is None:
    raise UsageError('no --labels: give names, as in --labels="cat,dog".')
  labels = printing.words_of('labels', values.labels)
  templates = templates_of(values)
  if values.top < 1:
    raise UsageError(f'--top={values.top} must be at least 1.')
  if not words:
    raise UsageError('no images: name at least one file after the flags.')
  words = [typed_place(word) for word in words]
  for path in words:
    if os.path.isdir(path):
      raise UsageError(f'{path} is a folder: name files, as in {path}/*.png.')
    if not os.path.exists(path):
      raise UsageError(f'no file {path}.')

  from clip_jax.inference.classifier import check_labels

  check_labels(labels)
  model = common_flags.load_model(values)
  probabilities = model.classify(
    printing.watch(words, len(words), 'images'),
    labels,
    templates,
    independent=values.independent,
  )
  if values.json:
    printing.print_json(
      [
        {'image': path, 'labels': dict(zip(labels, row, strict=True))}
        for path, row in zip(words, probabilities.tolist(), strict=True)
      ]
    )
    return
  width = max(map(len, labels))
  for path, row in zip(words, probabilities.tolist(), strict=True):
    print(path)
    ranked = sorted(zip(labels, row, strict=True), key=lambda x: -x[1])
    for label, probability in ranked[: values.top]:
      bar = '█' * round(_BAR * probability)
      print(f'  {100 * probability:5.1f} %  {label:<{width}}  {bar}'.rstrip())


def templates_of(values: flags.FlagValues) -> list[str]:
  """The prompts of --templates, those of its files included.

  Raises:
    UsageError: one has no slot for the name.
  """
  from clip_jax.inference.classifier import check_templates

  templates = []
  for value in values.templates:
    if value.startswith('@'):
      templates += printing.lines_of('templates', value[1:])
    else:
      templates.append(value)
  check_templates(templates)
  return templates
