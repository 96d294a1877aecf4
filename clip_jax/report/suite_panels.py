"""The page's figures, drawn: each with its title and what it corresponds to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from clip_jax.report import suite_figures as draw
from clip_jax.report import suite_rows as figures
from clip_jax.report.charts import inline
from clip_jax.report.words import percent

Collected = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Panel:
  """A figure on the page.

  Attributes:
    title: what it shows.
    note: beside the title, small.
    caption: which figure of the paper it is, and from which tables.
    svg: the drawing.
  """

  title: str
  note: str
  caption: str
  svg: Markup


def prompts(collected: Collected) -> list[Panel]:
  """Figure 4."""
  rows = figures.prompt_gains(collected)
  if not rows:
    return []
  return [
    _panel(
      'figure-4',
      'What prompts add',
      _count(rows),
      'As figure 4 of the paper, for this one model: zero-shot with the data '
      "set's prompts less zero-shot with bare names. From prompt_gain.",
      draw.draw_differences(rows, 'prompts less bare names'),
    )
  ]


def probes(collected: Collected) -> list[Panel]:
  """Figures 5, 6 and 7."""
  panels = []
  rows = figures.less_probe(collected)
  if rows:
    panels.append(
      _panel(
        'figure-5',
        'Zero-shot less linear probe',
        _count(rows),
        'As figure 5 of the paper, whose probe is on the features of a '
        "supervised ResNet-50; here it is on this model's own. From zero_shot "
        'and linear_probe.',
        draw.draw_differences(rows, 'zero-shot less probe'),
      )
    )
  rows = figures.few_shot(collected)
  if rows:
    panels.append(
      _panel(
        'figure-6',
        'Zero-shot against few-shot',
        _count(rows),
        'As figure 6 of the paper, for this one model: a star at 0 examples '
        'is zero-shot, a curve is of linear probes on its features, the mean '
        'over draws of the examples'
        + (
          ' (shaded: 95 % interval)' if _single(rows) else ', of each data set'
        )
        + '. From few_shot.',
        draw.draw_few_shot(rows),
      )
    )
  rows = figures.data_efficiency(collected)
  if rows:
    panels.append(
      _panel(
        'figure-7',
        'What a name is worth in examples',
        _count(rows),
        'As figure 7 of the paper: examples a class that a linear probe needs '
        'to be as good as zero-shot, along straight lines over log(shots); '
        'grey where the curve gives only a bound. From few_shot.',
        draw.draw_data_efficiency(rows),
      )
    )
  return panels


def calibration(collected: Collected) -> list[Panel]:
  """A reliability diagram a data set."""
  return [
    _panel(
      f'calibration-{result["dataset"]}',
      figures.title(collected, result),
      _calibration_error(result),
      'No figure of the paper. From zero_shot, reliability.',
      draw.draw_reliability(result['tables']['reliability']),
    )
    for result in figures.of_task(collected, 'zero_shot')
    if any(row['count'] for row in result['tables'].get('reliability', []))
  ]


def robustness(collected: Collected) -> list[Panel]:
  """Figures 13 to 15, one a shift."""
  panels = []
  for result in figures.of_task(collected, 'robustness'):
    rows, line = figures.robustness(result)
    if not rows:
      continue
    gain = result['metrics'].get('effective_robustness')
    note = (
      '' if gain is None else f'effective robustness {100 * gain:+.1f} points'
    )
    panels.append(
      _panel(
        f'robustness-{result["dataset"]}',
        figures.title(collected, result),
        note,
        'As figures 13 to 15 of the paper: accuracy under the shift over that '
        'without it, both on a scale of logits. What lies above the line is '
        'robust beyond what its accuracy explains. From robustness, models '
        'and fit.',
        draw.draw_robustness(rows, line),
      )
    )
  return panels


def overlap(collected: Collected) -> list[Panel]:
  """Figure 17, left."""
  rows = figures.overlaps(collected)
  if not rows:
    return []
  return [
    _panel(
      'figure-17',
      'What having seen the test is worth',
      _count(rows),
      'As figure 17 (left) of the paper: accuracy on test pictures with a '
      'near-duplicate in the training data less that on the rest, with the '
      '99.5 % Clopper-Pearson interval; grey where it holds 0. From overlap.',
      draw.draw_overlap(rows),
    )
  ]


def bias(collected: Collected) -> list[Panel]:
  """Tables 6 and 7, a figure a design."""
  panels = []
  for result in figures.of_task(collected, 'bias'):
    for i, (design, rows) in enumerate(figures.group_rates(result).items()):
      panels.append(
        _panel(
          f'bias-{result["dataset"]}-{i}',
          f'{figures.title(collected, result)}: {design}',
          '',
          'As tables 6 and 7 of the paper (section 7.1): how often pictures of '
          'each group are given a name of each kind, with 95 % '
          'Clopper-Pearson intervals. From bias, rates.',
          draw.draw_group_rates(rows),
        )
      )
  return panels


def _panel(
  name: str, title: str, note: str, caption: str, figure: Figure
) -> Panel:
  svg = inline(figure, name, f'{title}. {caption}')
  return Panel(title, note, caption, svg)


def _single(rows: Sequence[Mapping[str, Any]]) -> bool:
  return len({row['name'] for row in rows}) == 1


def _count(rows: Sequence[Mapping[str, Any]]) -> str:
  number = len({row['name'] for row in rows})
  return f'{number} data set{"" if number == 1 else "s"}'


def _calibration_error(result: Mapping[str, Any]) -> str:
  error = result['metrics'].get('ece')
  return '' if error is None else f'calibration error {percent(error)}'
