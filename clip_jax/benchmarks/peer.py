"""Runs open_clip in a process of its own, which waits for its turns.

`open_clip` starts this file as a script, in an interpreter that may know
nothing of JAX or clip_jax: neither is imported at the top.
"""

import gc
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Call = Callable[..., Any]
# A map from (what, batch) to the seconds of one call, where `what` is `image`
# or `text`, an encoder, or `train`, a step; of `open_clip_input` a transform.
Turn = Callable[[str, int], float]


class OutOfMemoryError(Exception):
  """A batch is too large for open_clip; smaller ones may still have turns."""


@contextmanager
def open_clip(
  preset: str, dtype: str, python: str | None = None
) -> Iterator[Turn]:
  """Starts open_clip's model of the same shape, with random weights.

  Two runtimes in one process disturb each other; so it gets its own, with as
  many threads as there are cores. It is idle while it has no turn. On a GPU its
  model is compiled, as by its `--torchcompile`.

  Args:
    preset: a published model.
    dtype: of its weights and inputs.
    python: the interpreter, where open_clip is installed; None is this one.
  Raises:
    FailureError: open_clip is not installed, does not know the model, or
      stopped.
    OutOfMemoryError: of a turn, whose batch a GPU cannot hold.
  """
  from clip_jax.models import presets

  name = preset.replace('/', '-').replace('@', '-')
  config = presets.resolve(preset)
  if config.text.activation == 'quick_gelu':
    name += '-quickgelu'
  threads = str(os.cpu_count() or 1)
  with _turns(python, 'model', name, dtype, threads) as turn:
    yield turn


@contextmanager
def open_clip_input(
  folder: str | os.PathLike, size: int, python: str | None = None
) -> Iterator[Turn]:
  """Starts open_clip's training transform, in one thread, on image files.

  A turn makes a float tensor [batch, 3, size, size]; its `what` is 'published'
  for the transform as it is, or 'square' for one whose crop is the paper's.

  Args:
    folder: has the images; they are read into memory first.
    size: pixels a side.
    python: as in `open_clip`.
  Raises:
    FailureError: open_clip is not installed, or stopped.
  """
  with _turns(python, 'input', os.fspath(folder), str(size)) as turn:
    yield turn


@contextmanager
def _turns(python: str | None, *arguments: str) -> Iterator[Turn]:
  """Starts this file as a script; it is ready when the block begins."""
  process = subprocess.Popen(
    [python or sys.executable, __file__, *arguments],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdin and process.stdout
  try:
    _answer(process.stdout)
    stdin, stdout = process.stdin, process.stdout

    def turn(what: str, batch: int) -> float:
      print(json.dumps([what, batch]), file=stdin, flush=True)
      return _answer(stdout)['seconds']

    yield turn
  finally:
    process.stdin.close()
    process.wait()


def _answer(stdout: Iterable[str]) -> dict[str, Any]:
  """Returns the next line of the process, unless it says what is wrong."""
  from clip_jax.errors import FailureError

  line = next(iter(stdout), '')
  answer = json.loads(line) if line else {'error': 'open_clip stopped.'}
  if 'too_large' in answer:
    raise OutOfMemoryError(answer['too_large'])
  if 'error' in answer:
    raise FailureError(answer['error'])
  return answer


def serve_model(name: str, dtype: str, threads: str) -> None:
  """Runs in that process: answers each line with {"seconds": …}.

  The first answer says that it is ready.
  """
  try:
    import open_clip  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError:
    _say({'error': 'no open_clip here: pip install open_clip_torch.'})
    return
  logging.disable(logging.WARNING)  # random weights are meant
  torch.set_num_threads(int(threads))
  # open_clip's own training allows TF32, and JAX uses it on GPUs by default.
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if name not in open_clip.list_models():
    name = name.removesuffix('-quickgelu')
  if name not in open_clip.list_models():
    _say({'error': f'open_clip knows no model {name}.'})
    return
  model = open_clip.create_model(name, pretrained=None, device=device)
  calls: dict[tuple[str, int], Call] = {}

  def turn(what: str, batch: int) -> float:
    first = (what, batch) not in calls
    if first and what == 'train':
      loss = open_clip.ClipLoss()
      calls[what, batch] = _train_step(torch, model, loss, batch, dtype)
    elif first:
      calls[what, batch] = _encoder(torch, model, what, batch, dtype)
    seconds = 0.0
    for _ in range(3 if first else 1):
      start = time.perf_counter()
      calls[what, batch]()
      if device == 'cuda':
        torch.cuda.synchronize()
      seconds = time.perf_counter() - start
    return seconds

  _say({'ready': name})
  for line in sys.stdin:
    what, batch = json.loads(line)
    try:
      _say({'seconds': turn(what, batch)})
      continue
    except torch.cuda.OutOfMemoryError as error:
      answer = {'too_large': str(error)}
    calls.clear()  # once no traceback holds their arrays
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    _say(answer)


def serve_input(folder: str, size: str) -> None:
  """Runs in that process, likewise."""
  try:
    import open_clip  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from torchvision import transforms  # pyright: ignore[reportMissingImports]
  except ImportError:
    _say({'error': 'no open_clip here: pip install open_clip_torch.'})
    return
  torch.set_num_threads(1)
  published = open_clip.image_transform(int(size), is_train=True)
  cubic = transforms.InterpolationMode.BICUBIC
  resize = transforms.Resize((int(size), int(size)), cubic)

  def square(image: Any) -> Any:
    image = resize(transforms.RandomCrop(min(image.size))(image))
    for step in published.transforms[1:]:  # all but its RandomResizedCrop
      image = step(image)
    return image

  calls = {'published': published, 'square': square}
  files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
  images = itertools.cycle(files)
  _say({'ready': str(published)})
  for line in sys.stdin:
    what, batch = json.loads(line)
    start = time.perf_counter()
    torch.stack(
      [
        calls[what](Image.open(io.BytesIO(image)))
        for image in itertools.islice(images, batch)
      ]
    )
    _say({'seconds': time.perf_counter() - start})


def _encoder(torch: Any, model: Any, tower: str, batch: int, dtype: str):
  model.to(getattr(torch, dtype)).eval()
  if tower == 'text':
    rows = _texts(torch, model, batch)
  else:
    rows = _images(torch, model, batch, dtype)
  encode = _compiled(torch, model, getattr(model, f'encode_{tower}'))

  def call() -> None:
    with torch.inference_mode():
      encode(rows, normalize=True)

  return call


def _train_step(torch: Any, model: Any, loss: Call, batch: int, dtype: str):
  """open_clip's own step without its data: loss, gradients, AdamW, clamp.

  In bfloat16 the weights stay float32 (its `--precision amp_bf16`), as ours do.
  """
  model.train()
  images = _images(torch, model, batch, 'float32')
  texts = _texts(torch, model, batch)
  half = torch.autocast(
    images.device.type, torch.bfloat16, enabled=dtype == 'bfloat16'
  )
  parameters = list(model.parameters())
  optimizer = torch.optim.AdamW(
    [
      {'params': [p for p in parameters if p.ndim < 2], 'weight_decay': 0.0},
      {'params': [p for p in parameters if p.ndim >= 2], 'weight_decay': 0.2},
    ],
    lr=5e-4,
    betas=(0.9, 0.98),
    eps=1e-6,
    fused=True,  # the fastest of its three forms
  )
  forward = _compiled(torch, model, model)

  def step() -> None:
    optimizer.zero_grad(set_to_none=True)
    with half:
      outputs = forward(images, texts)
      value = loss(*outputs[:3])
    value.backward()
    optimizer.step()
    with torch.no_grad():
      model.logit_scale.clamp_(0, 4.6052)  # ln(100)

  return step


def _compiled(torch: Any, model: Any, function: Call) -> Call:
  """Returns the function compiled for its shapes, where a model is on a GPU."""
  if model.logit_scale.device.type == 'cpu':
    return function
  return torch.compile(function, dynamic=False)


def _texts(torch: Any, model: Any, batch: int) -> Any:
  size = (batch, model.context_length)
  return torch.randint(
    1, model.vocab_size, size, device=model.logit_scale.device
  )


def _images(torch: Any, model: Any, batch: int, dtype: str) -> Any:
  size = model.visual.image_size
  size = size if isinstance(size, tuple) else (size, size)
  images = torch.randn(batch, 3, *size, device=model.logit_scale.device)
  return images.to(getattr(torch, dtype))


def _say(answer: Any) -> None:
  print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  {'model': serve_model, 'input': serve_input}[sys.argv[1]](*sys.argv[2:])
