"""The two encoders as ONNX, written by jax2onnx and checked with onnxruntime.

    encode_image.onnx    pixels: uint8 [b, S, S, 3] -> features: float32 [b, E]
    encode_text.onnx     tokens: int32 [b, T] -> features: float32 [b, E]

Normalisation is inside, and features have unit length. Weights are in the
file; where they are more than a protocol buffer can hold, beside it in
`encode_image.onnx.data`.

Exporters to other formats know JAX's primitive operations, and little of what
is around them: a scan over layers would become a loop with a slice of every
weight in each turn, where ONNX wants one node after another. So loops, calls
and constants that can be computed are taken out first (`unroll_jaxpr`).
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import artifact
from clip_jax.inference.model import Model
from clip_jax.inference.programs import Encoder, encoders, row_specs, specs_of

OPSET = 21
MAX_DIFFERENCE = 1e-4  # of any feature, from the model's
_MAX_BYTES = 2_000_000_000  # a protocol buffer ends at 2 GiB
_INPUTS = {'encode_image': 'pixels', 'encode_text': 'tokens'}
_ROWS = (1, 3)  # two batch sizes, to show that any will do


def check_possible(dtype: str) -> None:
  """Refuses early what `write_onnx` could not do.

  Raises:
    UsageError: the dtype is not float32, or what writes ONNX is not
      installed.
  """
  if dtype != 'float32':
    raise UsageError(
      'ONNX is written in float32 only, since onnxruntime has no bfloat16 on '
      'the CPU: leave out --onnx or --dtype.'
    )
  _libraries()


def write_onnx(
  folder: Path, model: Model, weights: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Writes both encoders, and runs them on random rows.

  Args:
    folder: where the files go.
    model: in float32.
    weights: what `flat_weights` gives.
  Returns:
    The largest difference of a feature from the model's, for each encoder.
  Raises:
    UsageError: see `check_possible`.
    FailureError: jax2onnx cannot express the model, or the features differ by
      more than `MAX_DIFFERENCE`.
  """
  check_possible(jnp.dtype(model.module.dtype).name)
  rows = row_specs(model)
  differences = {}
  for name, encoder in encoders(model).items():
    file = folder / artifact.onnx_file(name)
    _convert(file, name, encoder, weights, rows[name])
    difference = _difference(
      file, encoder, weights, _random_rows(rows[name], model)
    )
    if not difference <= MAX_DIFFERENCE:  # also true of NaN
      raise FailureError(
        f'{file.name} computes features that differ from the model by '
        f'{difference:.1e}, more than {MAX_DIFFERENCE:.0e}: nothing was '
        'written. This is worth reporting.'
      )
    differences[name] = difference
  return differences


def _convert(
  file: Path,
  name: str,
  encoder: Encoder,
  weights: Mapping[str, np.ndarray],
  rows: jax.ShapeDtypeStruct,
) -> None:
  jax2onnx, onnx, _ = _libraries()
  # Traced here, and not by jax2onnx, which replaces functions of jax.numpy
  # while it traces: Flax's scan does not survive that.
  closed = jax.make_jaxpr(encoder)(specs_of(weights), rows)
  leaves = [weights[key] for key in sorted(weights)]
  try:
    with _quiet():
      proto = jax2onnx.to_onnx(
        unroll_jaxpr(closed, leaves),
        [rows],
        model_name=name,
        opset=OPSET,
        input_names=[_INPUTS[name]],
        output_names=['features'],
      )
  except Exception as error:  # of jax2onnx, of jax, of onnx
    reason = ' '.join(str(error).split())[:200]
    raise FailureError(
      f'jax2onnx could not express {name} ({type(error).__name__}: {reason}).'
    ) from error
  constants = sum(len(x.raw_data) for x in proto.graph.initializer)
  onnx.save_model(
    proto,
    os.fspath(file),
    save_as_external_data=constants > _MAX_BYTES,
    location=f'{file.name}.data',
  )
  onnx.checker.check_model(os.fspath(file))


def _difference(
  file: Path,
  encoder: Encoder,
  weights: Mapping[str, np.ndarray],
  rows: np.ndarray,
) -> float:
  """Returns how far onnxruntime's features are from the encoder's."""
  _, _, onnxruntime = _libraries()
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  session = onnxruntime.InferenceSession(
    os.fspath(file), options, providers=['CPUExecutionProvider']
  )
  name = session.get_inputs()[0].name
  expected = np.asarray(jax.jit(encoder)(dict(weights), rows))
  return max(
    float(np.abs(session.run(None, {name: rows[:n]})[0] - expected[:n]).max())
    for n in _ROWS
  )


def _random_rows(rows: jax.ShapeDtypeStruct, model: Model) -> np.ndarray:
  rng = np.random.default_rng(0)
  high = 256 if rows.dtype == jnp.uint8 else model.config.text.vocab_size
  return rng.integers(0, high, (max(_ROWS), *rows.shape[1:]), rows.dtype)


def _libraries() -> tuple[Any, Any, Any]:
  """Returns jax2onnx, onnx and onnxruntime, optional dependencies."""
  try:
    import jax2onnx
    import onnx
    import onnxruntime
  except ImportError as error:
    raise UsageError(
      f'writing ONNX needs {error.name}: pip install ".[onnx]", or '
      'leave out --onnx.'
    ) from error
  return jax2onnx, onnx, onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences jax2onnx, which reports unused plugins and prints to stdout."""
  loggers = [logging.getLogger(name) for name in ('jax2onnx', 'onnx_ir')]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


# Primitives that only call what is in their parameters.
_CALLS = frozenset(
  {'jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call'}
  | {'checkpoint', 'remat', 'remat2'}
)


def unroll_jaxpr(
  closed: ClosedJaxpr, weights: Sequence[np.ndarray]
) -> Callable[..., Any]:
  """Returns the function of a jaxpr's last arguments, the first being known.

  Args:
    closed: what `jax.make_jaxpr` gives; symbolic sizes may be in it.
    weights: its first arguments. They become constants, and what follows from
      them alone is computed now.
  Returns:
    A function of the other arguments. Traced, it shows no scan and no call.
  Raises:
    NotImplementedError: from the function, at a scan that gathers outputs.
  """

  def function(*rows: Any) -> Any:
    (result,) = _evaluate(closed.jaxpr, closed.consts, [*weights, *rows])
    return result

  return function


def _evaluate(
  jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]
) -> list[Any]:
  values = dict(zip(jaxpr.constvars, consts, strict=True))
  values |= dict(zip(jaxpr.invars, arguments, strict=True))

  def value(v: Any) -> Any:
    return v.val if isinstance(v, Literal) else values[v]

  for eqn in jaxpr.eqns:
    results = _apply(eqn, [value(v) for v in eqn.invars])
    values |= zip(eqn.outvars, results, strict=True)
  return [value(v) for v in jaxpr.outvars]


def _apply(eqn: JaxprEqn, arguments: list[Any]) -> list[Any]:
  name, params = eqn.primitive.name, eqn.params
  if name == 'scan':
    return _unroll(params, arguments)
  if name in _CALLS:
    inner = params['jaxpr'] if 'jaxpr' in params else params['call_jaxpr']
    if isinstance(inner, ClosedJaxpr):
      return _evaluate(inner.jaxpr, inner.consts, arguments)
    return _evaluate(inner, (), arguments)
  if _is_known(eqn, arguments):
    with jax.ensure_compile_time_eval():
      result = eqn.primitive.bind(*arguments, **params)
  else:
    result = eqn.primitive.bind(*arguments, **params)
  return list(result) if eqn.primitive.multiple_results else [result]


def _unroll(params: dict[str, Any], arguments: list[Any]) -> list[Any]:
  """Returns the turns of a scan, one after another."""
  consts_end = params['num_consts']
  carry_end = consts_end + params['num_carry']
  consts, carry = arguments[:consts_end], arguments[consts_end:carry_end]
  # In numpy, since slicing a JAX array would add an operation to the program.
  stacks = [
    x if isinstance(x, Tracer) else np.asarray(x) for x in arguments[carry_end:]
  ]
  body = params['jaxpr']
  if len(body.out_avals) > len(carry):
    raise NotImplementedError('a scan that gathers outputs is not unrolled')
  turns = range(params['length'])
  for i in reversed(turns) if params['reverse'] else turns:
    carry = _evaluate(
      body.jaxpr, body.consts, [*consts, *carry, *(x[i] for x in stacks)]
    )
  return carry


def _is_known(eqn: JaxprEqn, arguments: list[Any]) -> bool:
  """Returns whether a result follows from constants, and has a size."""
  avals: list[Any] = [v.aval for v in eqn.outvars]
  sizes = [size for aval in avals for size in aval.shape]
  return not any(isinstance(x, Tracer) for x in arguments) and not any(
    jax.export.is_symbolic_dim(size) for size in sizes
  )
