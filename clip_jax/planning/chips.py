"""What one TPU chip can do, from the vendor's documentation.

Sources: cloud.google.com/tpu/docs/v4, /v5e, /v5p-training and /v6e, as they
were in 2025, for all rates. The network of v4 and v5p is not stated there; it
is taken to be 200 Gbit/s a host of four chips. The memory that a program may
use is a little less than the chip has: it is what libtpu says when a program is
too large.
"""

import dataclasses
from typing import Any

from clip_jax.training.utilization import PEAK_FLOPS

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    device_kind: as JAX names it; the key of `PEAK_FLOPS`.
    hbm_bytes: of memory that a program may use.
    hbm_bandwidth: bytes a second.
    ici_bandwidth: bytes a second that leave by all links to neighbours.
    dcn_bandwidth: bytes a second that leave for another slice.
    dimensions: of the torus: each has two links a chip.
    wrapped_side: chips of a side from which on its two ends are linked.
    pod_chips: the most in one slice.
    options: what `get_topology_desc` must be told besides the name.
  """

  device_kind: str
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float
  dimensions: int
  wrapped_side: int
  pod_chips: int
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def peak_flops(self) -> float:
    """Dense bfloat16 FLOP/s."""
    return PEAK_FLOPS[self.device_kind]


CHIPS = {
  'v4': Chip(
    device_kind='TPU v4',
    hbm_bytes=int(30.75 * GIB),
    hbm_bandwidth=1200e9,
    ici_bandwidth=300e9,
    dcn_bandwidth=6.25e9,
    dimensions=3,
    wrapped_side=4,
    pod_chips=4096,
    # The two cores of a chip as one device, as JAX has them on a real one.
    options=(('chip_config_name', 'megacore'),),
  ),
  'v5e': Chip(
    device_kind='TPU v5 lite',
    hbm_bytes=int(15.75 * GIB),
    hbm_bandwidth=819e9,
    ici_bandwidth=200e9,
    dcn_bandwidth=3.125e9,
    dimensions=2,
    wrapped_side=16,
    pod_chips=256,
  ),
  'v5p': Chip(
    device_kind='TPU v5',
    hbm_bytes=int(95.73 * GIB),
    hbm_bandwidth=2765e9,
    ici_bandwidth=600e9,
    dcn_bandwidth=6.25e9,
    dimensions=3,
    wrapped_side=4,
    pod_chips=8960,
  ),
  'v6e': Chip(
    device_kind='TPU v6 lite',
    hbm_bytes=int(31.24 * GIB),
    hbm_bandwidth=1640e9,
    ici_bandwidth=400e9,
    dcn_bandwidth=12.5e9,
    dimensions=2,
    wrapped_side=16,
    pod_chips=256,
  ),
}
