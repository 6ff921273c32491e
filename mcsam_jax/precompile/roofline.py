"""How long a step takes at least by a chip's published peaks: of compute, of HBM, of the interconnect."""

import dataclasses

from mcsam_jax.hardware import Chip
from mcsam_jax.precompile.collectives import Transfer
from mcsam_jax.precompile.cost import Costs


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one run of a program on each device, each term as if it were alone; they overlap at best."""
  compute: float
  hbm: float
  ici: float
  dcn: float | None       # None: something crosses slices and no bandwidth is published

  @property
  def terms(self) -> dict[str, float]:
    return {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici} | ({"DCN": self.dcn} if self.dcn else {})

  @property
  def binds(self) -> str:
    return max(self.terms, key=self.terms.get)

  @property
  def seconds(self) -> float:
    return self.terms[self.binds]


def roofline(costs: Costs, sent: list[Transfer], chip: Chip) -> Roofline:
  """Returns the terms of a program's costs. A device that is half a chip has half of everything."""
  share = 1 / chip.devices_per_chip
  wire = {network: sum(transfer.wire_bytes for transfer in sent if transfer.network == network)
          for network in ("ici", "dcn")}
  if not wire["dcn"]:
    dcn = 0.0
  else:
    dcn = wire["dcn"] / (chip.dcn_bandwidth * share) if chip.dcn_bandwidth else None
  return Roofline(costs.flops / (chip.flops * share), costs.hbm_bytes / (chip.hbm_bandwidth * share),
                  wire["ici"] / (chip.ici_bandwidth * share), dcn)


def utilisation(model_flops: float, devices: int, seconds: float, chip: Chip) -> float:
  """Returns the share of the chips' peak that the model's operations of a step would take in `seconds`."""
  return model_flops / devices / (chip.device_flops * seconds) if seconds else 0.0
