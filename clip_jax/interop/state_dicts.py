"""Finds the model's tensors in a file, and their names without wrappers.

People save a model inside of others: in a dict of a training run, behind the
names that data parallelism, compilation or a trainer put before every key, and
beside an average of itself. The model is told by the keys that only a CLIP has;
whatever stands before them is a wrapper.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from clip_jax.errors import UsageError
from clip_jax.interop.tensor_file import Tensors

# Keys that only a CLIP has, one or more of each layout. Those of a text tower
# count where there is no image tower. `_BARE_KEYS` are of transformers' models
# of one tower, whose keys do not begin with the tower's name.
_IMAGE_KEYS = (
  'vision_model.embeddings.position_embedding.weight',
  'visual.positional_embedding',
  'visual.attnpool.positional_embedding',
  'visual.trunk.pos_embed',
  'params/img/pos_embedding',
)
_TEXT_KEYS = (
  'text_model.embeddings.position_embedding.weight',
  'params/txt/pos_embedding',
)
_BARE_KEYS = {
  'embeddings.patch_embedding.weight': 'vision_model.',
  'embeddings.token_embedding.weight': 'text_model.',
}
# Keys of a text tower alone in open_clip's layout. They are tried last, since
# the keys of other layouts end with them, too.
_OPEN_CLIP_TEXT_KEYS = (
  ('text.token_embedding.weight',),
  ('token_embedding.weight',),
)
_PROJECTIONS = ('visual_projection.', 'text_projection.')
# Names of modules that wrap another: those of DistributedDataParallel,
# torch.compile, FSDP, activation checkpointing and DeepSpeed.
_WRAPPERS = frozenset(
  {
    *('module', '_orig_mod', '_fsdp_wrapped_module'),
    *('_checkpoint_wrapped_module', '_forward_module'),
  }
)
# The usual keys of a state dict, where no name in it says that it is a CLIP's.
STATE_DICT_KEYS = ('state_dict', 'model_state_dict', 'model')
_AVERAGE = re.compile(
  r'(?:^|[._])(?:ema|swa|averaged?|avg|shadow)(?:[._]|$)', re.IGNORECASE
)
_COUNTER = 'n_averaged'  # of torch's AveragedModel
# Entries that a training run saves beside the model, at the top.
OF_TRAINING = re.compile(
  r'opt/|optim|lr_|sched|scaler|grad_scaler|loops|callbacks|rng|amp',
  re.IGNORECASE,
)
_TOP = 'raw'  # the label of a model without anything before its keys


class SelectedTensors(NamedTuple):
  """The model's tensors.

  Attributes:
    names: what each is called in the model -> in the file.
    notes: sentences on what was chosen.
  """

  names: dict[str, str]
  notes: tuple[str, ...]


def selected(tensors: Tensors, wanted: str | None = None) -> Tensors:
  """Returns a file with the model's tensors alone, under their own names.

  Args:
    tensors: all of a file; those in dicts have names joined by dots.
    wanted: which of several models, by the name of its key.
  Raises:
    UsageError: see `select`.
  """
  names, notes = select(tensors.infos, str(tensors.path), wanted)
  return Tensors(
    tensors.path,
    tensors.format,
    {ours: tensors.infos[theirs] for ours, theirs in names.items()},
    tensors.metadata,
    lambda name: tensors.read(names[name]),
    tensors.release,
    notes,
  )


def select(
  names: Collection[str], where: str, wanted: str | None = None
) -> SelectedTensors:
  """Returns the tensors of a file that are the model's.

  Args:
    names: in the file.
    where: the file, for notes and errors.
    wanted: which of several models, by the name of its key.
  Raises:
    UsageError: there is none of that name, or several and none was named.
  """
  clean = _unwrapped(names)
  labels = {prefix.rstrip('./') or _TOP: prefix for prefix in _prefixes(clean)}
  if not labels:
    return SelectedTensors(_without_prefix(names), ())
  averages = [x for x in labels if _is_average(x, labels[x], clean)]
  label, notes = _choose(list(labels), averages, where, wanted)
  chosen = {
    name.removeprefix(labels[label]): original
    for name, original in clean.items()
    if _owner(name, labels.values()) == labels[label]
  }
  left = [
    name
    for name in clean
    if _owner(name, labels.values()) is None and not OF_TRAINING.match(name)
  ]
  left = [name for name in left if name != _COUNTER]
  if left:
    more = ', …' if len(left) > 2 else ''
    notes = (
      *notes,
      f'{where}: {len(left):,} tensors that are not of the CLIP model under '
      f'{label!r} are left out ({", ".join(left[:2])}{more}).',
    )
  chosen.pop(_COUNTER, None)
  return SelectedTensors(_with_tower(chosen), notes)


def _unwrapped(names: Collection[str]) -> dict[str, str]:
  """Returns names without wrappers, each with its name in the file.

  Where two would become one, all stay as they are.
  """
  clean = {
    '.'.join(part for part in name.split('.') if part not in _WRAPPERS): name
    for name in names
  }
  return clean if len(clean) == len(names) else {name: name for name in names}


def _prefixes(names: Collection[str]) -> list[str]:
  """Returns what stands before the keys of each model."""
  for keys in (_IMAGE_KEYS, _TEXT_KEYS, _BARE_KEYS, *_OPEN_CLIP_TEXT_KEYS):
    candidates = {
      name.removesuffix(key)
      for name in names
      for key in keys
      if name.endswith(key)
    }
    prefixes = [
      x
      for x in sorted(candidates)
      if (not x or x[-1] in './') and not OF_TRAINING.match(x)
    ]
    if prefixes:
      return prefixes
  return []


def _owner(name: str, prefixes: Iterable[str]) -> str | None:
  """Returns the model that a tensor is of: that of the longest prefix."""
  return max(filter(name.startswith, prefixes), key=len, default=None)


def _is_average(label: str, prefix: str, names: Collection[str]) -> bool:
  return bool(_AVERAGE.search(label)) or f'{prefix}{_COUNTER}' in names


def _choose(
  labels: list[str], averages: list[str], where: str, wanted: str | None
) -> tuple[str, tuple[str, ...]]:
  """Returns the label of the model that is taken, and notes about it."""
  others = [label for label in labels if label not in averages]
  if wanted is not None:
    fitting = [x for x in labels if x == wanted] or [
      x for x in labels if wanted in x.split('.')
    ]
    if len(fitting) != 1:
      raise UsageError(
        f'{where} has no weights called {wanted!r}: it has '
        f'{", ".join(map(repr, labels))}.'
      )
    return fitting[0], ()
  if len(labels) == 1:
    if not averages:
      return labels[0], ()
    return labels[0], (
      f'{where} holds averaged weights (EMA) and no others: these are taken.',
    )
  if len(averages) == 1 and len(others) == 1:
    return averages[0], (
      f'{where} holds weights, {others[0]!r}, and their average (EMA), '
      f'{averages[0]!r}: the average is taken; weights={others[0]} takes the '
      'others.',
    )
  raise UsageError(
    f'{where} holds several models: {", ".join(map(repr, labels))}; say which, '
    f'as in weights={labels[0]}.'
  )


def _with_tower(names: dict[str, str]) -> dict[str, str]:
  """Returns the names, with that of the tower where one alone lacks it."""
  for key, tower in _BARE_KEYS.items():
    if key in names:
      return {
        name if name.startswith(_PROJECTIONS) else f'{tower}{name}': original
        for name, original in names.items()
      }
  return names


def _without_prefix(names: Collection[str]) -> dict[str, str]:
  """Returns the names of a state dict without a CLIP, for the error."""
  inner = {name: name for name in names}
  for key in STATE_DICT_KEYS:
    if any(name.startswith(f'{key}.') for name in inner):
      inner = _below(key, inner)
      break
  while all(name.startswith('module.') for name in inner):
    inner = _below('module', inner)
  return inner


def _below(key: str, names: dict[str, str]) -> dict[str, str]:
  """Returns the names below a key, without it."""
  return {
    name.removeprefix(f'{key}.'): original
    for name, original in names.items()
    if name.startswith(f'{key}.')
  }
