"""Evaluates a model on a data set.

usage:
  clip-jax eval --model=REF --task=TASK --data=SPEC [--templates=…]

tasks:
  zero_shot  the right name among all names of the data set: top-1, top-5
  retrieval  the texts of an image, and the image of a text: recall at 1, 5, 10

examples:
  clip-jax eval --model=runs/emoji --task=zero_shot --data=tfds:emoji#test
  clip-jax eval --model=runs/emoji --task=retrieval \\
      --data=tfds:emoji#test --json
  clip-jax eval --model=REF --task=zero_shot --data=folder:pets \\
      --templates="a photo of a {}, a type of pet."
  clip-jax eval --model=REF --task=retrieval --data=csv:pairs.csv

Pictures that cannot be read are left out and counted, up to --max_corrupt.
"""

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.commands.classify import templates_of


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  common_flags.define_model(values)
  flags.DEFINE_string('task', None, 'what to measure', flag_values=values)
  flags.DEFINE_string(
    'data', None, 'a data set, SCHEME:LOCATION[#SPLIT]', flag_values=values
  )
  common_flags.define_captions(values)
  common_flags.define_templates(values)
  common_flags.define_encoding(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Prints the metrics."""
  printing.no_words('eval', words)
  reference = common_flags.reference_of(values)
  task = printing.require(values.task, 'task', 'zero_shot or retrieval')
  spec = printing.require(
    values.data, 'data', 'name a data set, as in --data=tfds:emoji#test'
  )

  from clip_jax.evaluation import Options, find_evaluator
  from clip_jax.evaluation.dataset import of_source

  evaluate = find_evaluator(task)
  options = Options(
    templates=tuple(templates_of(values)),
    max_corrupt_records=values.max_corrupt,
    watch=printing.watch,
  )

  from clip_jax.inference.references import recognise

  recognise(reference)  # before a data set is built for nothing

  from clip_jax.data.sources import open_source

  source = open_source(spec, captions=tuple(values.captions))
  model = common_flags.load_model(
    values, dtype=values.dtype, batch_size=values.batch_size
  )
  result = evaluate(model, of_source(source), options)
  printing.report_corrupt(result.corrupt)
  if values.json:
    printing.print_json(
      {
        'task': task,
        'data': spec,
        'model': reference,
        'step': model.step,
        'metrics': result.metrics,
        'corrupt': result.corrupt,
      }
    )
    return
  step = '' if model.step is None else f' at step {model.step:,}'
  print(f'{task} on {spec}, {reference}{step}')
  width = max(map(len, result.metrics))
  for name, value in result.metrics.items():
    counted = name in ('examples', 'texts')
    shown = f'{value:8,.0f}' if counted else f'{100 * value:8.2f} %'
    print(f'  {name:<{width}}  {shown}')
