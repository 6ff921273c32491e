"""Peak performance of accelerators, as their manufacturers publish it.

Utilization and rooflines are computed with these figures. Each row names the page that it comes from; where two
versions of Google's pages differ, the larger figure is used, so that no utilization looks better than it is.
"""

import dataclasses

GB, GIB, TERA, GBIT = 10**9, 2**30, 10**12, 10**9 / 8
_GOOGLE = "https://docs.cloud.google.com/tpu/docs"
_A100 = ("https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
         "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf")
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator; all figures are for the whole chip."""
  name: str
  flops: float                  # dense bfloat16 matrix operations per second
  hbm_bytes: float              # size of its memory
  hbm_bandwidth: float          # bytes per second to and from its memory
  ici_bandwidth: float          # bytes per second sent over all direct links together; as many are received
  ici_links: int                # number of direct links; 0: connected by a switch
  dcn_bandwidth: float | None   # bytes per second and chip over the data-center network; None: not published
  max_slice_chips: int          # chips in the largest slice
  devices_per_chip: int         # JAX devices
  source: str                   # page that publishes the figures
  clock_hz: float | None = None   # None: not published, or the compiler joins two cores into one device

  @property
  def device_flops(self) -> float:
    """Operations per second of one JAX device, which is half a chip on TPU v3 and TPU7x."""
    return self.flops / self.devices_per_chip


# From v5e on, Google publishes ICI bandwidth in both directions together (400 GB/s are 200 out and 200 in). For v3 and
# v4 it publishes the all-reduce bandwidth of a pod, which on v5e and v6e equals the number of chips times the bandwidth
# out of one chip. The clock follows from the peak and the published units: a v3 core has 2 multipliers of 128 x 128, a
# v5e core has 4.
_TPUS = (
    Chip("v3", 123 * TERA, 32 * GIB, 900 * GB, 340 * TERA / 1024, 4, None, 1024, 2, f"{_GOOGLE}/v3",
         61.5 * TERA / (2 * 2 * 128**2)),
    Chip("v4", 275 * TERA, 32 * GIB, 1200 * GB, 1100 * TERA / 4096, 6, None, 4096, 1, f"{_GOOGLE}/v4"),
    Chip("v5e", 197 * TERA, 16 * GIB, 819 * GB, 200 * GB, 4, 25 * GBIT, 256, 1, f"{_GOOGLE}/v5e",
         197 * TERA / (2 * 4 * 128**2)),
    Chip("v5p", 459 * TERA, 95 * GIB, 2765 * GB, 600 * GB, 6, 50 * GBIT, 6144, 1, f"{_GOOGLE}/v5p"),
    Chip("v6e", 918 * TERA, 32 * GIB, 1640 * GB, 400 * GB, 4, 100 * GBIT, 256, 1, f"{_GOOGLE}/v6e"),
    Chip("tpu7x", 2307 * TERA, 192 * GIB, 7380 * GB, 600 * GB, 6, 100 * GBIT, 9216, 2, f"{_GOOGLE}/tpu7x"),
)
_GPUS = (
    Chip("A100-40GB", 312 * TERA, 40 * GB, 1555 * GB, 300 * GB, 0, None, 8, 1, _A100),
    Chip("A100-80GB", 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 0, None, 8, 1, _A100),
    Chip("H100-SXM", 989.4 * TERA, 80 * GB, 3350 * GB, 450 * GB, 0, None, 8, 1, _H100),
    Chip("H100-PCIe", 756 * TERA, 80 * GB, 2000 * GB, 300 * GB, 0, None, 8, 1, _H100),
    Chip("H200-SXM", 989.4 * TERA, 141 * GB, 4800 * GB, 450 * GB, 0, None, 8, 1, _H200),
)
CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}
# Part of `jax.Device.device_kind`, in lower case -> name of the chip; the first match counts.
_KINDS = (
    ("tpu v3", "v3"), ("tpu v4", "v4"), ("tpu v5 lite", "v5e"), ("tpu v5e", "v5e"), ("tpu v5", "v5p"),
    ("tpu v6 lite", "v6e"), ("tpu v6e", "v6e"), ("tpu7x", "tpu7x"), ("tpu v7x", "tpu7x"),
    ("a100-sxm4-40gb", "A100-40GB"), ("a100-pcie-40gb", "A100-40GB"), ("a100", "A100-80GB"),
    ("h200", "H200-SXM"), ("h100 pcie", "H100-PCIe"), ("h100", "H100-SXM"),
)


def detect_chip(device_kind: str) -> Chip | None:
  """Returns the chip of a `jax.Device.device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3"); None if it is unknown."""
  kind = device_kind.lower()
  if kind.startswith("tpu v4 lite"):              # v4i is for inference only, and no figures are published
    return None
  return next((CHIPS[name] for part, name in _KINDS if part in kind), None)
