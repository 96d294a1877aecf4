"""Model FLOPs utilization: the model's arithmetic over the chips' peak."""

from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import training_flops

# Dense bfloat16 FLOP/s of one device, by its `device_kind` (vendors' data
# sheets). Others, CPUs among them, have no figure.
PEAK_FLOPS = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,  # v5e
  'TPU v5': 459e12,  # v5p
  'TPU v6 lite': 918e12,  # v6e
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


def model_flops_utilization(
  config: CLIPConfig,
  examples_per_second: float,
  device_kind: str,
  devices: int,
  patch_dropout: float = 0.0,
) -> float | None:
  """The share of the devices' peak that the model's own arithmetic takes.

  Args:
    devices: that share the work.
    patch_dropout: as in `training_flops`.
  Returns:
    A fraction, or None where the peak of this kind of device is not known.
  """
  peak = PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  pair = training_flops(config, patch_dropout)
  return pair * examples_per_second / (peak * devices)
