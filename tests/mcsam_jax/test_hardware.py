"""JAX's device names select the right chip, and its figures have consistent units."""

import pytest

from mcsam_jax.hardware import CHIPS, detect_chip


@pytest.mark.parametrize("kind, name", [
    ("TPU v3", "v3"), ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p"),
    ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v6e", "v6e"), ("TPU7x", "tpu7x"),
    ("NVIDIA A100-SXM4-40GB", "A100-40GB"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
    ("NVIDIA A100 80GB PCIe", "A100-80GB"), ("NVIDIA H100 80GB HBM3", "H100-SXM"), ("NVIDIA H100 PCIe", "H100-PCIe")])
def test_device_kinds_of_jax_select_their_chip(kind, name):
  assert detect_chip(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v2", "TPU v4 lite", "Tesla T4"])
def test_an_unknown_device_kind_has_no_chip(kind):
  assert detect_chip(kind) is None


def test_figures_have_consistent_units():
  """A wrong power of ten, or bits instead of bytes, would leave these ranges."""
  for chip in CHIPS.values():
    assert 100 < chip.flops / chip.hbm_bandwidth < 600, chip.name       # operations per byte: 137 (v3) to 560 (v6e)
    assert 0.01 < chip.hbm_bytes / chip.hbm_bandwidth < 0.1, chip.name  # seconds to read the memory once
    assert 2 < chip.hbm_bandwidth / chip.ici_bandwidth < 15, chip.name
    assert chip.dcn_bandwidth is None or 20 < chip.ici_bandwidth / chip.dcn_bandwidth < 120, chip.name
    assert chip.device_flops * chip.devices_per_chip == chip.flops
    assert chip.source.startswith("https://")
