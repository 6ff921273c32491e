"""The files by which a run can be followed: each step once, the console log of all starts, the curves, the software."""

import json
import subprocess

from etils import epath
import PIL.Image
import pytest

from mcsam_jax.checkpoints.provenance import describe_software, find_commit
from mcsam_jax.errors import UserError
from mcsam_jax.training.run_log import metrics_file as metrics_file_module
from mcsam_jax.training.run_log.console_log import ConsoleLog
from mcsam_jax.training.run_log.curves import draw_curves
from mcsam_jax.training.run_log.metrics_file import MetricsFile, read_metrics


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path)


def read_steps(path) -> list[int]:
  return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_there_once_after_resuming_at_an_earlier_step(path):
  first = MetricsFile(path, 0, pytest.fail)
  for step in (10, 20, 30):
    first.add(step, {"train/loss": 1 / step})
  assert read_steps(path) == [10, 20, 30]                       # at once, without a flush
  with (path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "train/lo')                        # killed while it wrote
  resumed = MetricsFile(path, 20, pytest.fail)
  assert read_steps(path) == [10, 20]
  for step in (30, 40):
    resumed.add(step, {"train/loss": 2.0})
  assert read_steps(path) == [10, 20, 30, 40]
  assert read_metrics(path / "metrics.jsonl")[30]["train/loss"] == 2


def test_validation_joins_the_line_of_its_step_and_other_values_stay_json(path):
  metrics = MetricsFile(path, 0, pytest.fail)
  metrics.add(10, {"train/loss": 1.5})
  metrics.add(10, {"val/CIDEr": 0.25, "val/token_loss": float("nan")})
  metrics.flush()
  metrics.add(20, {"train/loss": 1.0})
  rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [10, 20] and "NaN" not in (path / "metrics.jsonl").read_text()
  assert (rows[0]["train/loss"], rows[0]["val/CIDEr"], rows[0]["val/token_loss"]) == (1.5, 0.25, None)


def test_a_full_disk_stops_nothing_and_the_rows_are_written_later(path, monkeypatch):
  lines = []
  metrics = MetricsFile(path, 0, lines.append)

  def fail(*arguments):
    raise OSError("No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(MetricsFile, "_append", fail)
    patch.setattr(metrics_file_module, "atomic_write", fail)
    for step in (10, 20):
      metrics.add(step, {"train/loss": 1.0})
    metrics.flush()
  assert len(lines) == 1 and "No space left" in lines[0] and "metrics.jsonl" in lines[0]
  metrics.flush()
  assert read_steps(path) == [10, 20]


def test_the_console_log_is_appended_and_says_why_a_run_stopped(path):
  shown = []
  with ConsoleLog(shown.append) as log:
    log("before the workdir is known")
    log.open(path, "seed 3")
    log("step 1")
    assert "step 1" in (path / "train.log").read_text()         # at once
  with pytest.raises(UserError), ConsoleLog(shown.append) as log:
    log.open(path, "seed 3")
    raise UserError("train.batch_size=3: too small")
  with pytest.raises(ValueError), ConsoleLog(shown.append) as log:
    log.open(path, "seed 3")
    raise ValueError("ENLARGED HEART".lower())                  # a message may quote a report
  text = (path / "train.log").read_text()
  order = ["mcsam train", "before the workdir is known", "step 1", "mcsam train", "train.batch_size=3", "mcsam train",
           "ValueError", "test_run_log.py"]
  positions, start = [], 0
  for part in order:
    start = text.index(part, start)
    positions.append(start)
  assert positions == sorted(positions) and "enlarged" not in text and "seed 3" in text
  assert shown == ["before the workdir is known", "step 1"]


def test_nothing_is_written_before_the_workdir_is_known(path):
  with pytest.raises(UserError), ConsoleLog(lambda line: None) as log:
    log("device")
    raise UserError("no such config")
  assert list(path.iterdir()) == []


def test_curves_are_a_picture_and_a_missing_folder_stops_nothing(path):
  rows = {10: {"train/token_loss": 2.0}, 20: {"train/token_loss": 1.0, "val/CIDEr": 0.5, "val/token_loss": None}}
  lines = []
  draw_curves(rows, path, "CIDEr", lines.append)
  assert lines == [] and PIL.Image.open(path / "metrics.png").size[0] > 500
  (path / "file").write_text("")
  draw_curves(rows, path / "file", "CIDEr", lines.append)
  assert len(lines) == 1 and "metrics.png" in lines[0]


def test_the_commit_is_that_of_the_folder_itself_and_says_whether_files_have_changed(path):
  git = lambda *arguments: subprocess.run(["git", "-C", str(path), *arguments], check=True, capture_output=True,
                                          text=True).stdout.strip()
  assert find_commit(path) is None
  git("init")
  assert find_commit(path) is None                              # no commit yet
  (path / "a").write_text("1")
  git("add", "a")
  git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-m", "first")
  commit = git("rev-parse", "HEAD")
  assert find_commit(path) == commit
  (path / "a").write_text("2")
  assert find_commit(path) == f"{commit}-dirty"
  (path / "installed").mkdir()
  assert find_commit(path / "installed") is None                # inside the repository of another project
  software = describe_software()
  assert software["packages"]["jax"] and software["mcsam_jax"] and json.loads(json.dumps(software)) == software
