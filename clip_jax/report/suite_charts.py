"""The charts of the suite's page: results.json in, the paper's figures out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from clip_jax.evaluation.suite.collected import headline_metric
from clip_jax.report import few_shot_figures, suite_figures
from clip_jax.report.charts import Chart, to_svg
from clip_jax.report.page import percent

# The content of results.json, and one of its results.
Collected = Mapping[str, Any]
Result = Mapping[str, Any]


def results_of(collected: Collected, task: str) -> Iterator[Result]:
  """Yields the results of a task that did not fail."""
  for result in collected['results']:
    if result['task'] == task and result['error'] is None:
      yield result


def title(collected: Collected, result: Result) -> str:
  """Returns the name of a result's data set, for people."""
  facts = collected['datasets'].get(result['dataset'], {})
  return facts.get('title') or result['dataset']


def headline_metric_of(collected: Collected, result: Result) -> str | None:
  """Returns the metric that a classification of this data set is judged by."""
  facts = collected['datasets'].get(result['dataset'], {})
  return headline_metric(result['metrics'], facts.get('metric'))


def probe_curve(result: Result) -> list[dict[str, Any]]:
  """Returns the few-shot scores of a result, by rising examples a class."""
  rows = [x for x in result['tables'].get('curve', []) if x['start'] == 'zeros']
  return sorted(rows, key=lambda row: row['shots'])


def prompt_charts(collected: Collected) -> list[Chart]:
  """Returns figure 4, where prompts were compared with bare names."""
  rows = [
    {
      'name': title(collected, result),
      'value': result['metrics']['ensemble_gain'],
    }
    for result in results_of(collected, 'prompt_gain')
  ]
  if not rows:
    return []
  return [
    _chart(
      'figure-4',
      'What prompts add',
      _count(rows),
      'As figure 4 of the paper, for this one model: zero-shot with the data '
      "set's prompts less zero-shot with bare names. From prompt_gain.",
      suite_figures.draw_differences(rows, 'prompts less bare names'),
    )
  ]


def probe_charts(collected: Collected) -> list[Chart]:
  """Returns those of figures 5, 6 and 7 that there are results for."""
  return [
    *_zero_shot_less_probe(collected),
    *_few_shot(collected),
    *_data_efficiency(collected),
  ]


def calibration_charts(collected: Collected) -> list[Chart]:
  """Returns a reliability diagram for each data set."""
  charts = []
  for result in results_of(collected, 'zero_shot'):
    bins = [x for x in result['tables'].get('reliability', []) if x['count']]
    error = result['metrics'].get('ece')
    if bins:
      charts.append(
        _chart(
          f'calibration-{result["dataset"]}',
          title(collected, result),
          '' if error is None else f'calibration error {percent(error)}',
          'No figure of the paper. From zero_shot, reliability.',
          suite_figures.draw_reliability(bins),
        )
      )
  return charts


def robustness_charts(collected: Collected) -> list[Chart]:
  """Returns figures 13 to 15, one for each shift."""
  charts = []
  for result in results_of(collected, 'robustness'):
    rows = [
      {
        'name': row['name'],
        'reference': row['reference_accuracy'],
        'shift': row['shift_accuracy'],
        'kind': row['kind'],
      }
      for row in result['tables'].get('models', [])
    ]
    if not rows:
      continue
    fits = result['tables'].get('fit', [])
    gain = result['metrics'].get('effective_robustness')
    note = (
      '' if gain is None else f'effective robustness {100 * gain:+.1f} points'
    )
    charts.append(
      _chart(
        f'robustness-{result["dataset"]}',
        title(collected, result),
        note,
        'As figures 13 to 15 of the paper: accuracy under the shift over that '
        'without it, both on a logit scale. What lies above the line is '
        'robust beyond what its accuracy explains. From robustness, models '
        'and fit.',
        suite_figures.draw_robustness(rows, fits[0] if fits else None),
      )
    )
  return charts


def overlap_charts(collected: Collected) -> list[Chart]:
  """Returns figure 17, left, where test images were seen in training."""
  rows = [
    {
      'name': title(collected, result),
      'fraction': result['metrics']['overlap_share'],
      'difference': result['metrics']['overlap_minus_clean'],
      'low': result['metrics']['overlap_minus_clean_low'],
      'high': result['metrics']['overlap_minus_clean_high'],
    }
    for result in results_of(collected, 'overlap')
    if 'overlap_minus_clean' in result['metrics']
  ]
  if not rows:
    return []
  return [
    _chart(
      'figure-17',
      'What having seen the test is worth',
      _count(rows),
      'As figure 17 (left) of the paper: accuracy on test images with a '
      'near-duplicate in the training data less that on the rest, with the '
      '99.5 % Clopper-Pearson interval; grey where it holds 0. From overlap.',
      suite_figures.draw_overlap(rows),
    )
  ]


def bias_charts(collected: Collected) -> list[Chart]:
  """Returns tables 6 and 7, a chart for each design.

  Designs of a single kind are left out: every rate is 1.
  """
  charts = []
  for result in results_of(collected, 'bias'):
    designs: dict[str, list[dict[str, Any]]] = {}
    for row in result['tables'].get('rates', []):
      designs.setdefault(row['design'], []).append(row)
    shown = [
      (design, rows)
      for design, rows in designs.items()
      if len({row['kind'] for row in rows}) > 1
    ]
    for i, (design, rows) in enumerate(shown):
      charts.append(
        _chart(
          f'bias-{result["dataset"]}-{i}',
          f'{title(collected, result)}: {design}',
          '',
          'As tables 6 and 7 of the paper (section 7.1): how often images of '
          'each group are given a name of each kind, with 95 % '
          'Clopper-Pearson intervals. From bias, rates.',
          suite_figures.draw_group_rates(rows),
        )
      )
  return charts


def _zero_shot_less_probe(collected: Collected) -> list[Chart]:
  """Returns figure 5."""
  probes = {x['dataset']: x for x in results_of(collected, 'linear_probe')}
  rows = []
  for result in results_of(collected, 'zero_shot'):
    probe = probes.get(result['dataset'])
    if probe is None:
      continue
    metric = headline_metric_of(collected, result)
    probe_metric = headline_metric_of(collected, probe)
    if metric and probe_metric:
      value = result['metrics'][metric] - probe['metrics'][probe_metric]
      rows.append({'name': title(collected, result), 'value': value})
  if not rows:
    return []
  return [
    _chart(
      'figure-5',
      'Zero-shot less linear probe',
      _count(rows),
      'As figure 5 of the paper, whose probe is on the features of a '
      "supervised ResNet-50; here it is on this model's own. From zero_shot "
      'and linear_probe.',
      suite_figures.draw_differences(rows, 'zero-shot less probe'),
    )
  ]


def _few_shot(collected: Collected) -> list[Chart]:
  """Returns figure 6."""
  rows = []
  for result in results_of(collected, 'few_shot'):
    name = title(collected, result)
    zero_shot = result['metrics']['zero_shot']
    rows.append(
      {'name': name, 'shots': 0, 'mean': zero_shot, 'low': None, 'high': None}
    )
    rows += [
      {
        'name': name,
        **{key: row[key] for key in ('shots', 'mean', 'low', 'high')},
      }
      for row in probe_curve(result)
      if not row['full']
    ]
  if not rows:
    return []
  single = len({row['name'] for row in rows}) == 1
  spread = ' (shaded: 95 % interval)' if single else ', of each data set'
  return [
    _chart(
      'figure-6',
      'Zero-shot against few-shot',
      _count(rows),
      'As figure 6 of the paper, for this one model: a star at 0 examples is '
      'zero-shot, a curve is of linear probes on its features, the mean over '
      f'draws of the examples{spread}. From few_shot.',
      few_shot_figures.draw_few_shot(rows),
    )
  ]


def _data_efficiency(collected: Collected) -> list[Chart]:
  """Returns figure 7.

  A bound stands where a curve begins above zero-shot, or never reaches it.
  """
  rows = []
  for result in results_of(collected, 'few_shot'):
    curve = probe_curve(result)
    if not curve:
      continue
    needed, bound = result['metrics'].get('shots_to_match_zero_shot'), ''
    if needed is None:
      above = curve[0]['mean'] > result['metrics']['zero_shot']
      needed = curve[0 if above else -1]['shots']
      bound = '<' if above else '>'
    rows.append(
      {'name': title(collected, result), 'shots': needed, 'bound': bound}
    )
  if not rows:
    return []
  return [
    _chart(
      'figure-7',
      'What a name is worth in examples',
      _count(rows),
      'As figure 7 of the paper: examples a class that a linear probe needs to '
      'be as good as zero-shot, along straight lines over its logarithm; '
      'grey where the curve gives only a bound. From few_shot.',
      few_shot_figures.draw_data_efficiency(rows),
    )
  ]


def _chart(
  name: str, title: str, note: str, caption: str, figure: Figure
) -> Chart:
  svg = to_svg(figure, name, f'{title}. {caption}')
  return Chart(title, note, svg, caption)


def _count(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns how many data sets some rows are of."""
  number = len({row['name'] for row in rows})
  return f'{number} data set{"" if number == 1 else "s"}'
