"""Small programs, compiled for the CPU, and lines of ones for a TPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.planning import hlo


def array(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  """An argument that need not exist."""
  return jax.ShapeDtypeStruct(sizes, dtype)


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
  """The function, compiled for these arguments."""
  return jax.jit(function).lower(*arguments).compile()


def program(function: Callable[..., Any], *arguments: Any) -> hlo.HloModule:
  """The same, read from its text."""
  return hlo.parse(compiled(function, *arguments).as_text())


# The program that libtpu compiled from a ViT-B/32 at batch 32,768 for
# v5e:16x16, cut down to the lines that matter: a loop over 12 blocks with the
# product of queries and keys as a convolution with holes, the gradients' sum,
# and a gather that is spread over two fusions.
TPU = """\
HloModule jit_train_step, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b)
}

%gather_begins (param_0.1: bf16[128,512]) -> (bf16[128,512], bf16[32768,512], u32[]) {
  %param_0.1 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.5 = bf16[32768,512]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=1, replica_groups=mesh['axis_0'=256] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.71 = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[32768,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%all-gather.5), custom_call_target="AsyncCollectiveStart"
}

%gather_goes_on (param_0.2: bf16[128,512], param_1.2: bf16[128,512], param_2.2: bf16[512,512]) -> (bf16[128,512], bf16[128,512], bf16[32768,512]) {
  %param_0.2 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.2 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %param_2.2 = bf16[512,512]{1,0:T(8,128)(2,1)} parameter(2)
  %convolution.109 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} convolution(%param_1.2, %param_2.2), dim_labels=bf_io->bf
  %all-gather.7 = bf16[32768,512]{1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=1, replica_groups=mesh['axis_0'=256] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %tuple.412 = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[32768,512]{1,0:T(8,128)(2,1)}) tuple(%convolution.109, %param_0.2, %all-gather.7)
}

%attend (q: bf16[128,77,8,64], k: bf16[128,77,8,64]) -> bf16[128,8,77,77] {
  %q = bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution-base-dilated.53 = bf16[128,8,77,77]{2,3,1,0:T(8,128)(2,1)S(1)} convolution(%q, %k), window={size=128x8 stride=127x7 lhs_dilate=128x8}, dim_labels=01bf_01oi->01bf, metadata={op_name="BNLK,BNMK->BNLM"}
}

%body (carry: (s32[], bf16[128,8,77,64], bf16[3072,768])) -> (s32[], bf16[128,8,77,64], bf16[3072,768]) {
  %carry = (s32[]{:T(128)}, bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)}, /*index=2*/bf16[3072,768]{1,0:T(8,128)(2,1)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=1
  %g = bf16[3072,768]{1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=2
  %logits = bf16[128,8,77,77]{2,3,1,0:T(8,128)(2,1)S(1)} fusion(%x, %x), kind=kOutput, calls=%attend
  %all-reduce.61 = bf16[3072,768]{1,0:T(8,128)(2,1)} all-reduce(%g), channel_id=2, replica_groups=mesh['axis_0'=256] {'axis_0'}, use_global_device_ids=true, to_apply=%add
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%turn, %one)
  ROOT %out = (s32[]{:T(128)}, bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)}, bf16[3072,768]{1,0:T(8,128)(2,1)}) tuple(%next, %x, %all-reduce.61)
}

%condition (carry.1: (s32[], bf16[128,8,77,64], bf16[3072,768])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)}, bf16[3072,768]{1,0:T(8,128)(2,1)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %constant.818 = s32[]{:T(128)} constant(12)
  ROOT %lt.87 = pred[]{:T(512)} compare(%turn.1, %constant.818), direction=LT
}

ENTRY %main (start: (s32[], bf16[128,8,77,64], bf16[3072,768]), own: bf16[128,512], kernel: bf16[512,512]) -> bf16[128,512] {
  %start = (s32[]{:T(128)}, bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)}, bf16[3072,768]{1,0:T(8,128)(2,1)}) parameter(0)
  %own = bf16[128,512]{1,0:T(8,128)(2,1)} parameter(1)
  %kernel = bf16[512,512]{1,0:T(8,128)(2,1)} parameter(2)
  %copy-start.1 = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[128,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%own)
  %copy-done.1 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %gather = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[32768,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%copy-done.1), kind=kCustom, calls=%gather_begins
  %still = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%gather), index=0
  %both = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[32768,512]{1,0:T(8,128)(2,1)}) fusion(%still, %copy-done.1, %kernel), kind=kCustom, calls=%gather_goes_on
  %while.209 = (s32[]{:T(128)}, bf16[128,8,77,64]{3,2,1,0:T(8,128)(2,1)}, bf16[3072,768]{1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
  ROOT %result = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%both), index=0
}
"""  # noqa: E501

# A layer of a stack is sliced in a fusion inside of that of its product.
NESTED = """\
HloModule nested, is_scheduled=true

%inner (stack: bf16[24,128,64], i: s32[]) -> bf16[128,64] {
  %stack = bf16[24,128,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,128,64]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,128,64}
  ROOT %layer = bf16[128,64]{1,0} bitcast(%slice)
}

%outer (stack.1: bf16[24,128,64], i.1: s32[], w: bf16[64,64]) -> bf16[128,64] {
  %stack.1 = bf16[24,128,64]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %w = bf16[64,64]{1,0} parameter(2)
  %x = bf16[128,64]{1,0} fusion(%stack.1, %i.1), kind=kLoop, calls=%inner
  ROOT %y = bf16[128,64]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (p0: bf16[24,128,64], p1: s32[], p2: bf16[64,64]) -> bf16[128,64] {
  %p0 = bf16[24,128,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[64,64]{1,0} parameter(2)
  ROOT %fusion = bf16[128,64]{1,0} fusion(%p0, %p1, %p2), kind=kOutput, calls=%outer
}
"""  # noqa: E501
