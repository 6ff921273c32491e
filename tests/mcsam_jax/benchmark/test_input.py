"""`mcsam benchmark input` on a small data set; memory use doesn't grow with the number of records read."""

import importlib.util
import json
import subprocess
import sys

import pytest

from mcsam_jax import cli
from tests.testing import physionet

READ_BATCHES = """
import resource, sys
from input_pipeline.pipeline import train_batches
from input_pipeline.splits import open_split
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from mcsam_jax.config import load_config
config = load_config("mimic_cxr", sys.argv[1:])
split = open_split(config, "train")
seen = 0
for batch in train_batches(split, load_or_build_tokenizer(config), config, 0, 50000 // config.train.batch_size + 1):
  for threshold in (1000, 50000):
    if seen < threshold <= seen + len(batch["valid"]):
      with open("/proc/self/statm") as file:
        print(int(file.read().split()[1]) * resource.getpagesize())
  seen += len(batch["valid"])
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mimic")
  physionet.write_tree(folder / "source", 240)
  flags = [f"--config.data.source_dir={folder / 'source'}", f"--config.data.data_dir={folder / 'data'}",
           "--config.tokenizer.threshold=1", "--config.train.batch_size=40", "--config.train.host_threads=2",
           "--config.data.image_size=64"]
  assert cli.main(["prepare", "--config", "mimic_cxr", *flags]) == 0
  return flags


def test_input_benchmark_prints_json(flags, capsys):
  assert cli.main(["benchmark", "input", "--config", "mimic_cxr", "--steps", "3", "--repeats", "2", *flags]) == 0
  figures = json.loads(capsys.readouterr().out)
  rates = figures["images_per_second"]
  assert rates["pipeline"] > 0 and rates["bare_decoder"] > 0 and rates["one_thread"] > 0
  assert (rates["data_loader"] is None) == (importlib.util.find_spec("torch") is None)
  assert figures["pipeline_to_bare_decoder"] == pytest.approx(rates["pipeline"] / rates["bare_decoder"], abs=1e-3)
  assert len(figures["all_images_per_second"]["pipeline"]) == 2


@pytest.mark.slow
def test_memory_does_not_grow_from_1000_to_50000_records(flags):
  run = subprocess.run([sys.executable, "-c", READ_BATCHES, *flags], capture_output=True, text=True, check=True)
  early, late = map(int, run.stdout.split())
  assert late < early * 1.1, f"{early / 1e6:.0f} MB after 1,000 records, {late / 1e6:.0f} MB after 50,000"
