"""What accelerators can do at most, as their makers publish it.

Utilisation and rooflines divide by these figures. Each row names the page that it was read from; where two versions of
Google's pages differ, the larger figure is taken, so that no utilisation looks better than it is.
"""

import dataclasses

GB, GIB, TERA, GBIT = 10**9, 2**30, 10**12, 10**9 / 8
_GOOGLE = "https://docs.cloud.google.com/tpu/docs"
_A100 = ("https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
         "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf")
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator; figures are for the whole chip."""
  name: str
  flops: float                  # bfloat16 products of matrices, dense, operations a second
  hbm_bytes: float              # memory
  hbm_bandwidth: float          # bytes a second to and from it
  ici_bandwidth: float          # bytes a second that leave the chip over all its direct links; as many come in
  ici_links: int                # 0: through a switch
  dcn_bandwidth: float | None   # bytes a second of the data-centre network, a chip's share; None: not published
  max_slice_chips: int                      # chips of the largest slice
  devices_per_chip: int                  # as JAX counts them
  source: str
  clock: float | None = None    # Hz, see below; None: not published, or a device is two cores that the compiler joins

  @property
  def device_flops(self) -> float:
    """Operations a second of what JAX calls a device: half a chip on TPU v3 and TPU7x."""
    return self.flops / self.devices_per_chip


# Google gives ICI in both directions together from v5e on (400 GB/s are 200 out and 200 in). For v3 and v4 it gives the
# all-reduce bandwidth of a pod, which on v5e and v6e is exactly the chips times what leaves one of them.
# The clock follows from the peak and the published units: v3's core has 2 of 128 x 128 multipliers, v5e's has 4.
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
)
CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}
# What `jax.Device.device_kind` says, in small letters; the first that is contained counts.
_KINDS = (
    ("tpu v3", "v3"), ("tpu v4", "v4"), ("tpu v5 lite", "v5e"), ("tpu v5e", "v5e"), ("tpu v5", "v5p"),
    ("tpu v6 lite", "v6e"), ("tpu v6e", "v6e"), ("tpu7x", "tpu7x"), ("tpu v7x", "tpu7x"),
    ("a100-sxm4-40gb", "A100-40GB"), ("a100-pcie-40gb", "A100-40GB"), ("a100", "A100-80GB"),
    ("h100 pcie", "H100-PCIe"), ("h100", "H100-SXM"),
)


def detect_chip(device_kind: str) -> Chip | None:
  """Returns the chip of a `jax.Device.device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3"); None: not in the table."""
  kind = device_kind.lower()
  if kind.startswith("tpu v4 lite"):              # v4i serves only, and nothing is published of it
    return None
  return next((CHIPS[name] for part, name in _KINDS if part in kind), None)
