"""MFU by hand."""

import pytest

from clip_jax.models import presets
from clip_jax.training.utilization import model_flops_utilization


def test_utilization_of_a_pod_slice():
  """ViT-B/32: 14.8 GFLOPs a pair forward, less 0.95 that the last blocks leave
  out, so 41.4 with its gradients."""
  mfu = model_flops_utilization(
    presets.resolve('ViT-B/32'), 16_000.0, 'TPU v5 lite', 16
  )
  assert mfu == pytest.approx(16_000 * 41.4e9 / (16 * 197e12), rel=0.01)


def test_a_cpu_has_no_figure():
  config = presets.resolve('ViT-B/32')
  assert model_flops_utilization(config, 1.0, 'cpu', 1) is None
