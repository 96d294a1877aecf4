"""Selects the evaluations of a suite, and makes the suite of a model.

The evaluations are selected before a model is loaded, so that a wrong name or a
data set that is not there ends a call at once.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import clip_jax
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.errors import FailureError, print_notes
from clip_jax.evaluation import EVALUATORS, find_evaluator
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.datasets.names import contents_hash
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.evaluation.datasets.own import open_own, own_row, parse_datasets
from clip_jax.evaluation.datasets.presence import why_absent
from clip_jax.evaluation.datasets.table import DATASETS, DatasetFacts
from clip_jax.evaluation.features.cache import FeatureCache, identity_of
from clip_jax.evaluation.shift.effective_robustness import read_baselines
from clip_jax.evaluation.suite.plan import Plan, make_plan
from clip_jax.evaluation.suite.run import Suite
from clip_jax.evaluation.types import Options
from clip_jax.files import read_json
from clip_jax.inference.model import Model
from clip_jax.parallel.distributed import is_first_process

# The packages that numbers depend on.
PACKAGES = ('jax', 'jaxlib', 'numpy', 'scipy', 'scikit-learn')
_FORMAT = 2  # of results: those of another are made again


@dataclasses.dataclass(frozen=True)
class SuiteSelection:
  """The evaluations that a call of the suite selects.

  Attributes:
    plan: what to evaluate, and which data sets are absent.
    table: data sets by name, a user's own among them.
    own: the names of a user's own.
    root: the folder of the others.
    captions: the columns of captions of the user's own.
    training: the SPEC of what the model was trained on; '' where unknown.
    selected: whether the call names the data sets; otherwise they are all.
  """

  plan: Plan
  table: Mapping[str, DatasetFacts]
  own: frozenset[str]
  root: Path
  captions: tuple[str, ...]
  training: str
  selected: bool

  def open(self, name: str) -> Dataset:
    """Opens a data set of the table.

    Raises:
      UsageError: it cannot be opened.
    """
    if name in self.own:
      return open_own(self.table[name], self.captions)
    # Beside a user's own data, the columns are those of the own.
    captions = DEFAULT_CAPTIONS if self.own else self.captions
    return open_dataset(name, root=self.root, captions=captions)


def select_evaluations(
  datasets: Sequence[str],
  tasks: Sequence[str],
  *,
  root: Path,
  captions: tuple[str, ...],
  training: str,
) -> SuiteSelection:
  """Selects evaluators and data sets of which the test images are here.

  Args:
    datasets: names of the table, and a user's own as NAME=SPEC; () for the
      whole table.
    tasks: names of evaluators; () for all.
    root, captions, training: as in `SuiteSelection`.
  Raises:
    UsageError: a name or a SPEC is wrong, or nothing is left to evaluate.
  """
  names, specs = parse_datasets(datasets)
  own = {name: own_row(name, spec, captions) for name, spec in specs.items()}
  table = {**DATASETS, **own}
  plan = make_plan(
    table,
    EVALUATORS,
    lambda facts, root: None if facts.name in own else why_absent(facts, root),
    root=root,
    training_is_known=bool(training),
    datasets=names,
    tasks=tasks,
  )
  return SuiteSelection(
    plan, table, frozenset(own), root, captions, training, bool(names)
  )


def make_suite(
  selection: SuiteSelection,
  model: Model,
  *,
  dtype: str,
  options: Options,
  folder: Path,
) -> Suite:
  """Returns the suite that evaluates a model on what was selected.

  Its data sets print their notices when they are opened, each line once.

  Args:
    dtype: of the model's arithmetic.
    options: of every evaluator, without a cache.
    folder: where results and features are kept.
  """
  identity = identity_of(model, dtype)
  baselines = options.robustness.baselines
  printed: set[str] = set()

  def open_and_print(name: str) -> Dataset:
    dataset = selection.open(name)
    if is_first_process():
      print_notes(x for x in dataset.notices if x not in printed)
      printed.update(dataset.notices)
    return dataset

  return Suite(
    encoder=model,
    folder=folder,
    table=selection.table,
    find=find_evaluator,
    open=open_and_print,
    options=dataclasses.replace(
      options,
      overlap=dataclasses.replace(options.overlap, train=selection.training),
      cache=FeatureCache(folder / 'features', model, identity),
    ),
    depends={
      # Wherever the model lies.
      'model': {k: v for k, v in identity.items() if k != 'origin'},
      'results': _FORMAT,
      'root': str(selection.root),
      'names': contents_hash(),
      'baselines': baselines and read_baselines(baselines),
      'versions': _versions(),
    },
  )


def training_data(reference: Path) -> str:
  """Returns the SPEC of what a run was trained on.

  Args:
    reference: a run's workdir, or a checkpoint inside it.
  Returns:
    '' of another kind of model, or of a mixture of data sets.
  """
  reference = reference.absolute()
  inside = reference.parent.name == 'checkpoints'
  workdir = reference.parent.parent if inside else reference
  try:
    config = read_json(workdir / 'config.json')
  except FailureError:
    return ''
  data = config.get('data') if isinstance(config, dict) else None
  spec = data.get('train') if isinstance(data, dict) else None
  return spec if isinstance(spec, str) and '::' not in spec else ''


def _versions() -> dict[str, str]:
  packages = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {'clip_jax': clip_jax.__version__, **packages}
