"""A data set's pictures through the image tower: encoded, and classified."""

import statistics

from clip_jax.benchmarks.timing import Figures, median_seconds
from clip_jax.data.reading import read_ahead
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.evaluation.tasks import zero_shot
from clip_jax.evaluation.types import Options
from clip_jax.inference.model import Model


def pictures(model: Model, data: str, calls: int) -> Figures:
  """Pictures read, decoded and brought to size while the device computes.

  Where the data set has class names, in turns with its whole zero-shot
  evaluation: the prompts of all classes and what is told of each picture
  besides. 'zero_shot_ratio' is the median of its rates over those of encoding
  alone, turn by turn; 1 is as fast.

  Args:
    data: a name of the table of data sets, or a SPEC.
    calls: of each that are measured.
  """
  dataset = open_dataset(data)
  source = dataset.test.source

  def encode() -> int:
    reads = read_ahead(
      source, range(len(source)), preprocessing=model.preprocessing
    )
    decoded = (x.picture for x in reads if x.picture is not None)
    return len(model.encode_image(decoded))

  def classify() -> None:
    zero_shot.evaluate(model, dataset, Options())

  count = encode()  # of those that can be read
  figures: Figures = {'data': data, 'pictures': count}
  if not dataset.class_names or model.description.tokenizer is None:
    seconds = median_seconds(encode, calls, warm_up=False)
    return {**figures, 'pictures_per_second': count / seconds}
  classify()
  turns = [
    tuple(median_seconds(x, 1, warm_up=False) for x in (encode, classify))
    for _ in range(calls)
  ]
  alone, whole = zip(*turns, strict=True)
  return {
    **figures,
    'classes': len(dataset.class_names),
    'pictures_per_second': count / statistics.median(alone),
    'zero_shot_per_second': count / statistics.median(whole),
    'zero_shot_ratio': statistics.median(a / b for a, b in turns),
    'zero_shot_ratio_of_fastest': min(alone) / min(whole),
  }
