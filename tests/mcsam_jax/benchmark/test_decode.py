"""`mcsam benchmark decode` on a tiny model, and its FLOP counts against hand-computed values."""

import json

import pytest

from mcsam_jax import cli
from mcsam_jax import config as configs
from mcsam_jax.benchmark.decode import count_step_work
from tests.testing.tiny import make_arguments, NETWORK

SMALL = make_arguments(NETWORK, {"encoder.name": "resnet_tiny", "data.image_size": 32, "tokenizer.max_length": 5,
                                 "memory.query": "word_position", "model.num_memory_tokens": 8})


def test_decode_benchmark_prints_json(capsys):
  assert cli.main(["benchmark", "decode", "--config", "phantom", "--studies", "2", "3", "--repeats", "2",
                   "--vocabulary", "20", *SMALL]) == 0
  figures = json.loads(capsys.readouterr().out)
  assert [run["studies"] for run in figures["runs"]] == [2, 3]
  for run in figures["runs"]:
    assert len(run["all_seconds"]) == 2 and run["seconds"] > 0
    assert run["tokens_per_second"] == pytest.approx(run["studies"] * 5 / run["seconds"], rel=0.1)


def test_step_work_equals_hand_computed_values():
  config = configs.load_config("phantom", [*SMALL, "--config.decode.beam_size=3", "--config.model.num_memory_tokens=2"])
  work = count_step_work(config, 20, 4)                          # 12 rows, cache slots for 5 tokens and 2 memory tokens
  assert work["dense layers"] == {"flops": 2 * 12 * 8 * 16 * 16, "bytes": 4 * 8 * 16 * 16}
  assert work["logits"] == {"flops": 2 * 12 * 16 * 20, "bytes": 4 * 16 * 20}
  assert work["memory"]["flops"] == 2 * 12 * (2 * 16 * 16 + 2 * 12 * 16)


@pytest.mark.parametrize("flags", [["--studies", "0"], ["--repeats", "0"], ["--vocabulary", "3"]])
def test_too_small_arguments_exit_with_status_2(flags, capsys):
  assert cli.main(["benchmark", "decode", *flags]) == 2
  assert flags[0] in capsys.readouterr().err
