"""Abstract devices of a TPU slice, described by libtpu; no TPU is needed.

libtpu looks for TPUs when it is loaded; `prepare_environment` disables that. It must be called before jax is imported,
so this module imports jax only inside functions.
"""

import dataclasses
import importlib.util
import os
import re
from typing import Any

from mcsam_jax.errors import UserError
from mcsam_jax.hardware import Chip, CHIPS, detect_chip

EXAMPLES = "v5e:4x4, v5e:16x16, v4:8x8x16, v5p:4x4x4, v6e:16x16, v4:2x2x1, v5e:2x4"
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}    # one device per chip, as JAX reports it on v4 hosts


@dataclasses.dataclass(frozen=True)
class Topology:
  """One slice, or several connected by the data-center network."""
  name: str
  slices: int
  devices: tuple
  chip: Chip

  @property
  def chips(self) -> int:
    return len(self.devices) // self.chip.devices_per_chip

  @property
  def hosts(self) -> int:
    return len({device.process_index for device in self.devices})


def prepare_environment() -> None:
  """Keeps JAX on the CPU and libtpu off any TPU of this machine; has no effect once they are loaded."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"             # skip the query of Google's metadata server
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"     # several processes may compile at a time
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")   # libtpu fails if this is unset
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def find_topology(name: str, slices: int = 1) -> Topology:
  """Returns the topology with a name such as v5e:16x16.

  Raises:
    UserError: libtpu is missing, or the chip or shape is unknown.
  """
  if slices < 1:
    raise UserError(f"--slices {slices}: must be at least 1")
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
  if not match or match[1] not in CHIPS or not CHIPS[match[1]].ici_links:
    raise UserError(f"--topology {name}: expected CHIP:SHAPE, such as {EXAMPLES}; chips: "
                    + ", ".join(chip.name for chip in CHIPS.values() if chip.ici_links))
  shape = [int(size) for size in match[2].split("x")]
  count = 1
  for size in shape:
    count *= size
  chip = CHIPS[match[1]]
  if count > chip.max_slice_chips:
    raise UserError(f"--topology {name}: {count} chips; the largest slice of {chip.name} has "
                    f"{chip.max_slice_chips} (--slices connects several)")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("the TPU compiler is missing: pip install -e '.[tpu]' (no TPU is needed)")
  from jax.experimental import topologies
  options: dict[str, Any] = dict(_OPTIONS.get(chip.name, {}))
  if count < 4:                                      # less than one host
    options["chips_per_host_bounds"] = (*shape, 1)[:3]
  if slices > 1:
    options["num_slices"] = slices
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except Exception as error:                         # the C++ runtime raises no public type
    raise UserError(f"--topology {name}: {' '.join(str(error).split())[:200]}; try {EXAMPLES}") from error
  if detect_chip(devices[0].device_kind) != chip:
    raise UserError(f"--topology {name}: libtpu describes it as {devices[0].device_kind}; try {EXAMPLES}")
  return Topology(name, slices, tuple(devices), chip)
