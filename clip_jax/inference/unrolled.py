"""A traced function without loops, calls and constants that can be computed.

Exporters to other formats know JAX's primitive operations, and little of what
is around them: a scan over layers would become a loop with a slice of every
weight in each turn, where the other format wants one node after another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

# Primitives that only call what is in their parameters.
_CALLS = frozenset(
  {'jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call'}
  | {'checkpoint', 'remat', 'remat2'}
)


def unrolled(
  closed: ClosedJaxpr, weights: Sequence[np.ndarray]
) -> Callable[..., Any]:
  """The function of a jaxpr's last arguments, the first being known.

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
  """The turns of a scan, one after another."""
  consts_end = params['num_consts']
  carry_end = consts_end + params['num_carry']
  consts, carry = arguments[:consts_end], arguments[consts_end:carry_end]
  # As numpy: a slice of an array of JAX's would become an operation.
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
  """Whether a result follows from constants, and has a size."""
  avals: list[Any] = [v.aval for v in eqn.outvars]
  sizes = [size for aval in avals for size in aval.shape]
  return not any(isinstance(x, Tracer) for x in arguments) and not any(
    jax.export.is_symbolic_dim(size) for size in sizes
  )
