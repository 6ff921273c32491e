"""Roofline: lower bound of a step's duration from a chip's published peaks of compute, HBM and interconnect."""

import dataclasses

from mcsam_jax.hardware import Chip
from mcsam_jax.precompile.collectives import Transfer
from mcsam_jax.precompile.cost import Costs


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one run of a program per device, one term per resource; at best all terms overlap."""
  compute: float
  hbm: float
  ici: float
  dcn: float | None       # None: slices communicate, but no bandwidth is published

  @property
  def terms(self) -> dict[str, float]:
    return {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici} | ({"DCN": self.dcn} if self.dcn else {})

  @property
  def bottleneck(self) -> str:
    """Name of the longest term."""
    terms = self.terms
    return max(terms, key=lambda name: terms[name])

  @property
  def seconds(self) -> float:
    return self.terms[self.bottleneck]


def compute_roofline(costs: Costs, transfers: list[Transfer], chip: Chip) -> Roofline:
  """Returns the roofline of a program. A device that is half a chip has half of each peak."""
  fraction = 1 / chip.devices_per_chip
  wire = {network: sum(transfer.wire_bytes for transfer in transfers if transfer.network == network)
          for network in ("ici", "dcn")}
  if not wire["dcn"]:
    dcn = 0.0
  else:
    dcn = wire["dcn"] / (chip.dcn_bandwidth * fraction) if chip.dcn_bandwidth else None
  return Roofline(costs.flops / (chip.flops * fraction), costs.hbm_bytes / (chip.hbm_bandwidth * fraction),
                  wire["ici"] / (chip.ici_bandwidth * fraction), dcn)


def compute_utilization(model_flops: float, devices: int, seconds: float, chip: Chip) -> float:
  """Returns the fraction of the peak that `model_flops` per step, on all devices, reach in `seconds`."""
  return model_flops / devices / (chip.device_flops * seconds) if seconds else 0.0
