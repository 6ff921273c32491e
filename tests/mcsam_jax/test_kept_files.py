"""Whatever a folder holds beforehand, no verb changes a file that it didn't write in an earlier call.

Each verb runs in a folder full of other people's files, with each of its output options naming a new file, a file that
an earlier call wrote, somebody's file, a link to one, and its own input.
"""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from mcsam_jax import cli
from mcsam_jax.cli.verb import Verb
from mcsam_jax.files.outputs import check_output
from mcsam_jax.metrics.nlg import METRICS
from tests.testing.foreign.torch_files import Tensor, torch_names, zip_file
from tests.testing.tiny import make_arguments, NETWORK, PHANTOMS

REPORTS = [{"id": str(number), "report": report} for number, report in enumerate(
    ["the lungs are clear .", "no pleural effusion .", "the heart is normal in size ."])]
FIELDS = make_arguments(
    NETWORK, PHANTOMS, data__phantom__num_train=12, data__phantom__num_val=1, data__phantom__num_test=1,
    data__short_side=32, memory_init__kind="kmeans", memory_init__num_topics=3, prepare__num_workers=1)


def snapshot(root: pathlib.Path) -> dict[str, tuple]:
  """Returns what is at every path below `root`: a folder, a link and where it leads, or a file and its bytes."""
  found = {}
  for path in sorted(root.rglob("*")):
    kind = ("link", os.readlink(path)) if path.is_symlink() else ("folder",) if path.is_dir() else (
        "pipe",) if not path.is_file() else ("file", path.read_bytes())
    found[str(path.relative_to(root))] = kind
  return found


class Sandbox:
  """A folder of somebody's files in which verbs run."""

  def __init__(self, root: pathlib.Path):
    self.root, self.written = root, set()
    (root / "films").mkdir(parents=True)
    for name in ("films/1-1.jpg", "films/1-2.jpg", "film.png"):
      PIL.Image.new("L", (40, 40), 90).save(root / name)
    for name in ("thesis.txt", "thesis.json", "thesis.html", "thesis.png", "thesis.npz", "weights.pth~"):
      (root / name).write_bytes(b"three years of work")
    for name in ("link.txt", "link.json", "link.png", "link.npz"):
      (root / name).symlink_to(root / f"thesis.{name[5:]}")
    (root / "link_to_films").symlink_to(root / "films")
    (root / "refs.json").write_text(json.dumps(REPORTS))
    (root / "hyps.json").write_text(json.dumps(REPORTS[::-1]))
    with torch_names():
      words = Tensor(np.ones((7, 4), np.float32), "0", 0, (7, 4), (4, 1))
      (root / "model.pth").write_bytes(zip_file({"embeddings.word_embeddings.weight": words}))
    (root / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nlung\nheart\n##s\n")
    self.before = snapshot(root)

  def run(self, *arguments: str) -> int:
    """Runs `mcsam` in the folder; asserts that it changed only what it had written itself, and returns its status."""
    with contextlib.chdir(self.root):
      status = cli.main(list(arguments))
    after = snapshot(self.root)
    changed = {name for name, content in self.before.items() if after.get(name) != content}
    assert changed <= self.written, (arguments, changed - self.written)
    self.written |= set(after) - set(self.before) | changed
    self.before = after
    return status


@pytest.fixture
def sandbox(tmp_path):
  return Sandbox(tmp_path / "home")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Returns a sandbox in which records were prepared, beside somebody's files."""
  sandbox = Sandbox(tmp_path_factory.mktemp("prepared") / "home")
  assert sandbox.run("prepare", "--config", "phantom", *FIELDS, "--config.data.data_dir=data") == 0
  return sandbox


def check_outputs(sandbox, command, ending, inputs=()):
  """Runs a command with all kinds of output files; the new one is written twice."""
  for name in (f"thesis.{ending}", f"link.{ending}", "film.png", "films", *inputs):
    assert sandbox.run(*command, name) == 2, name
  for _ in range(2):
    assert sandbox.run(*command, f"new.{ending}") == 0


def test_score(sandbox, monkeypatch):
  monkeypatch.setattr(shutil, "which", lambda name: None)                # METEOR takes longer than the rest
  command = ["score", "--predictions", "hyps.json", "--references", "refs.json", "--labeler", "none", "--json"]
  check_outputs(sandbox, command, "json", ["hyps.json", "refs.json"])


def test_compare(sandbox, monkeypatch):
  monkeypatch.setattr(shutil, "which", lambda name: None)
  command = ["compare", "hyps.json", "refs.json", "--references", "refs.json", "--labeler", "none", "--json"]
  check_outputs(sandbox, command, "json", ["hyps.json", "refs.json"])


def test_table(sandbox):
  scores = {"split": "test", "num_studies": 1, "nlg": {"r2gen": dict.fromkeys(METRICS, 0.1)}, "labels": None}
  (sandbox.root / "scores.json").write_text(json.dumps(scores))
  sandbox.before = snapshot(sandbox.root)
  check_outputs(sandbox, ["table", "scores.json", "--out"], "json", ["scores.json"])


def test_import_weights(sandbox):
  check_outputs(sandbox, ["import-weights", "word-vectors", "--vocabulary", "vocab.txt", "model.pth"], "npz",
                ["model.pth", "vocab.txt"])
  for kind, options in (("encoder", []), ("chexbert", ["--vocabulary", "vocab.txt"])):
    for name in ("thesis.npz", "link.npz", "model.pth", "films"):
      assert sandbox.run("import-weights", kind, *options, "model.pth", name) == 2


def test_data(prepared):
  command = ["data", "--config", "phantom", *FIELDS, "--config.data.data_dir=data", "--batches", "1", "--out"]
  check_outputs(prepared, command, "png", ["refs.json"])


def test_init_memory(prepared):
  command = ["init-memory", "--config", "phantom", *FIELDS, "--config.data.data_dir=data", "--workdir"]
  for name in ("slots.npz", "topics.json", "made_from.json"):
    path = prepared.root / f"run-{name}" / "memory_bank" / name
    path.parent.mkdir(parents=True)
    path.write_text("somebody's")
    prepared.before = snapshot(prepared.root)
    assert prepared.run(*command, f"run-{name}") == 2
  assert prepared.run(*command, "run") == prepared.run(*command, "run") == 0


def test_prepare(prepared):
  """Files in the folder of an interrupted build, and a lock that is a link."""
  command = ["prepare", "--config", "phantom", *FIELDS, "--config.data.data_dir=other"]
  version, = (prepared.root / "data" / "phantom").glob("*/*/dataset_info.json")
  unfinished = prepared.root / "other" / version.parent.parent.relative_to(prepared.root / "data") / (
      f"{version.parent.name}.unfinished")
  unfinished.mkdir(parents=True)
  (unfinished / "notes.txt").write_text("somebody's")
  prepared.before = snapshot(prepared.root)
  assert prepared.run(*command) == 2
  shutil.rmtree(unfinished)
  lock = unfinished.parent / f".{unfinished.name}.lock"
  lock.unlink()
  lock.symlink_to(prepared.root / "thesis.txt")
  prepared.before = snapshot(prepared.root)
  assert prepared.run(*command) == 2
  lock.unlink()
  prepared.before = snapshot(prepared.root)
  assert prepared.run(*command) == prepared.run(*command) == 0


def test_every_verb_with_an_output_option_is_tried_here_or_beside_its_model():
  """`report` is tried in test_report.py, `precompile --hlo` below; a verb that gets an option has to be added."""
  import argparse
  tried = {"data": {"--out"}, "report": {"--out", "--html"}, "score": {"--json"}, "compare": {"--json"},
           "precompile": {"--hlo"}, "table": {"--out"}}
  for verb in cli.main.__globals__["VERBS"]:
    assert isinstance(verb, Verb)
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings
               if option in ("--out", "--html", "--json", "--hlo", "--csv", "--output") and action.nargs != 0}
    assert options == tried.get(verb.name, set()), verb.name


def test_a_device_a_pipe_and_a_missing_or_empty_file_are_written_to(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "empty").touch()                                           # as `mktemp` makes
  for path in ("", "/dev/null", "/dev/stdout", *(tmp_path / name for name in ("pipe", "empty", "new", "new/folder"))):
    check_output("--out", path, "mark")
