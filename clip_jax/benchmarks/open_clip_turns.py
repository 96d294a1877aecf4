"""The other side of `bench encode --against=open_clip`, a script: times one
call for each line [tower, batch] of stdin. It must not import JAX or clip_jax.
"""

import json
import logging
import sys
import time
from typing import Any


def main(name: str, dtype: str, threads: int) -> None:
  """Answers each line with {"seconds": …}; the first answer says ready."""
  try:
    import open_clip  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError:
    _say({'error': 'no open_clip here: pip install open_clip_torch.'})
    return
  logging.disable(logging.WARNING)  # random weights are meant
  torch.set_num_threads(threads)
  if name not in open_clip.list_models():
    name = name.removesuffix('-quickgelu')
  if name not in open_clip.list_models():
    _say({'error': f'open_clip knows no model {name}.'})
    return
  model = open_clip.create_model(name, pretrained=None).eval()
  model = model.to(getattr(torch, dtype))
  _say({'ready': name})
  inputs: dict[tuple[str, int], Any] = {}
  with torch.inference_mode():
    for line in sys.stdin:
      tower, batch = json.loads(line)
      first = (tower, batch) not in inputs
      if first:
        inputs[tower, batch] = _input(torch, model, tower, batch, dtype)
      encode = getattr(model, f'encode_{tower}')
      for _ in range(3 if first else 1):
        start = time.perf_counter()
        encode(inputs[tower, batch], normalize=True)
        seconds = time.perf_counter() - start
      _say({'seconds': seconds})


def _input(torch: Any, model: Any, tower: str, batch: int, dtype: str) -> Any:
  if tower == 'text':
    return torch.randint(1, model.vocab_size, (batch, model.context_length))
  size = model.visual.image_size
  size = size if isinstance(size, tuple) else (size, size)
  return torch.randn(batch, 3, *size).to(getattr(torch, dtype))


def _say(answer: Any) -> None:
  print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
