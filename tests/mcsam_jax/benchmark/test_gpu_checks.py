"""The script for GPUs: its checks on the CPU, and what becomes of a part that fails, hangs or doesn't apply."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.benchmarks import gpu_checks

SCRIPT = pathlib.Path(gpu_checks.__file__).with_name("gpu.sh")


def run_script(*arguments):
  """Runs the script in small; returns its status and results."""
  environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(["bash", SCRIPT, "--tiny", *arguments], capture_output=True, text=True, check=False,
                        env=environment)
  return done.returncode, json.loads(done.stdout)


def test_script_prints_json_and_leaves_out_what_has_no_time():
  status, results = run_script("--parts", "machine", "--seconds", "60")
  assert status == 0 and results["machine"]["platform"] == "cpu" and results["failed"] == []
  _, results = run_script("--parts", "train", "--seconds", "2")
  assert "left_out" in results["train"]


def test_top_k_on_this_device():
  results = gpu_checks.check_top_k(tiny=True)
  assert results == {"random": {"device": True, "cpu": True}, "tied": {"device": True, "cpu": True}, "passed": True}


def test_part_that_fails_is_reported(monkeypatch):
  def fail(tiny):
    raise MemoryError("no room")
  monkeypatch.setitem(gpu_checks.PARTS, "train", fail)
  assert gpu_checks.run_part("train", True) == {"error": "MemoryError: no room", "passed": False}


def test_part_that_hangs_is_ended(monkeypatch, tmp_path):
  slow = tmp_path / "slow.py"
  slow.write_text("import time\ntime.sleep(60)\n")
  monkeypatch.setattr(gpu_checks, "__file__", str(slow))
  assert "left_out" in gpu_checks.run_part_apart("train", True, 0.5)


def test_part_that_crashes_is_reported(monkeypatch, tmp_path):
  crashing = tmp_path / "crashing.py"
  crashing.write_text("import os\nos._exit(9)\n")
  monkeypatch.setattr(gpu_checks, "__file__", str(crashing))
  result = gpu_checks.run_part_apart("train", True, 30)
  assert "9" in result["error"] and not result["passed"]


def test_generate_is_left_out_without_cuda(monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
  assert "torch" in gpu_checks.run_part("generate", False)["left_out"]


def test_share_of_the_memory_bank():
  results = {"train": {"seconds_per_step": 4.0}, "train_without_memory": {"seconds_per_step": 3.0},
             "decode": {"runs": [{"seconds": 2.0}]}, "decode_without_memory": {"left_out": "no time was left"}}
  gpu_checks.add_memory_shares(results)
  assert results["train"]["memory_share"] == [0.25] and "memory_share" not in results["decode"]


@pytest.mark.slow
def test_whole_script_on_a_cpu():
  status, results = run_script("--seconds", "900")
  assert status == 0 and list(results) == [*gpu_checks.PARTS, "failed"]
  assert all("error" not in results[part] for part in gpu_checks.PARTS)
  assert results["parity"]["passed"] and results["parity"]["small"]["equal_reports"] > 0
  assert results["train"]["memory_share"] and results["decode"]["memory_share"]
