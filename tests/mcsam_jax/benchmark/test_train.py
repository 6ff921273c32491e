"""`mcsam benchmark train` on a tiny model: the figures agree with each other, and every part is timed."""

import json

import pytest

from mcsam_jax import cli
from mcsam_jax.benchmark.machine import find_instruction_set
from mcsam_jax.benchmark.train import benchmark_train
from mcsam_jax.training.flops import train_flops
from tests.testing.tiny import make_arguments, make_config, NETWORK, PHANTOMS

SIZES = {"data.image_size": 32, "encoder.name": "resnet_tiny", "tokenizer.max_length": 5}


def test_whole_step_with_cached_features():
  config = make_config(NETWORK, SIZES, encoder__frozen=True, train__batch_size=3, model__use_memory=False,
                       model__use_alignment=False)
  figures = benchmark_train(config, 20, repeats=2, by_part=False)
  assert figures["cached_features"] and figures["batch_size"] == 3 and "parts" not in figures
  assert len(figures["all_seconds"]) == 2 and figures["seconds"] > 0
  assert figures["examples_per_second"] == pytest.approx(3 / figures["seconds"], rel=0.1)
  assert 1e9 * figures["step_gflop"] == pytest.approx(train_flops(config, 20), abs=1e5)


# Twenty programs are compiled.
@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_parts_as_json(frozen, capsys):
  fields = make_arguments(NETWORK, PHANTOMS, SIZES, {"encoder.frozen": frozen})
  assert cli.main(["benchmark", "train", "--config", "phantom", "--batch-size", "3", "--repeats", "2",
                   "--vocabulary", "20", *fields]) == 0
  figures = json.loads(capsys.readouterr().out)
  assert figures["cached_features"] == frozen and figures["batch_size"] == 3
  parts = ["patches", "memory", "alignment", "decoder", "optimizer"]
  assert list(figures["parts"]) == ([] if frozen else ["augmentation", "image_encoder"]) + parts
  for part in ("decoder", "memory") if frozen else ("decoder", "image_encoder"):
    assert figures["parts"][part].keys() >= {"forward", "backward", "share_of_step", "forward_gflop"}


@pytest.mark.parametrize("lines, expected", [
    ("flags\t\t: fpu sse4_2 avx avx2\n", "avx2"), ("flags\t\t: avx2 avx512f avx512bw\n", "avx512f"),
    ("Features\t: fp asimd crc32\n", "asimd")])
def test_instruction_set_is_the_widest_of_the_cpu(tmp_path, lines, expected):
  (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: an avx512f chip\n{lines}")
  assert find_instruction_set(str(tmp_path / "cpuinfo")) == expected


def test_too_small_batch_exits_with_status_2(capsys):
  assert cli.main(["benchmark", "train", "--batch-size", "0"]) == 2
  assert "--batch-size" in capsys.readouterr().err
