"""The examples of docs/extending.md run as they stand there."""

import csv
import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from input_pipeline.builder.prepare import prepare
from input_pipeline.splits import open_split
from input_pipeline.tokenizer import build_tokenizer, load_tokenizer
from mcsam_jax import cli
from mcsam_jax.checkpoints.encoder_weights import check_encoder, load_encoder_weights
from mcsam_jax.errors import UserError
from mcsam_jax.metrics.external.own_metrics import add_own_metrics, load_own_metrics
from mcsam_jax.models.mcsam import ModelOutputs
from mcsam_jax.training.losses import compute_own_term
from mcsam_jax.training.optimizer import learning_rate
from tests.testing.tiny import make_arguments, make_config, NETWORK, PHANTOMS

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"
REPORTS = ("heart is normal", "no effusion", "lungs are clear")
OWN = {"data.name": "my_reports:make_builder", "eval.labeler": "rules", "data.num_views": 1}


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
  """Writes each example to the file that its first line names, in a folder from which modules are imported."""
  folder = tmp_path_factory.mktemp("modules")
  names = []
  for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
    names.append(re.match(r"# (\w+)\.py\n", block)[1])
    (folder / f"{names[-1]}.py").write_text(block)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield names
  for name in names:
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Returns a folder with reports.csv and its images: 4 studies in train, 2 in val and in test."""
  folder = tmp_path_factory.mktemp("source")
  splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
  with open(folder / "reports.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, ["id", "patient", "split", "image", "report"])
    writer.writeheader()
    for number, split in enumerate(splits):
      writer.writerow({"id": f"s{number}", "patient": f"p{number}", "split": split, "image": f"{number}.png",
                       "report": REPORTS[number % len(REPORTS)]})
      pixels = np.random.default_rng(number).integers(0, 255, (40, 48), np.uint8)
      Image.fromarray(pixels).save(folder / f"{number}.png")
  return folder


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
  """Returns the fields of a config whose records are prepared."""
  fields = OWN | {"data.source_dir": source, "data.data_dir": tmp_path_factory.mktemp("data"), "data.short_side": 32}
  prepare(make_config(NETWORK, PHANTOMS, fields), log=lambda line: None)
  return fields


def test_every_extension_point_of_the_table_has_an_example(modules):
  named = set(re.findall(r"(my_\w+):\w+", DOCUMENT.read_text()))
  assert named == set(modules) - {"my_weights"} and len(named) == 6


def test_encoder(tmp_path):
  config = make_config(PHANTOMS, encoder__name="my_encoder:make_spec", data__image_size=64)
  check_encoder(config)
  importlib.import_module("my_weights").convert(tmp_path / "w.npz")
  variables, meta = load_encoder_weights(tmp_path / "w.npz", config)
  assert variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 1, 16) and meta["pretraining_data"] == "none"


def test_data_set(prepared):
  train = open_split(make_config(NETWORK, PHANTOMS, prepared), "train")
  assert train.ids == ["s0", "s1", "s2", "s3"] and list(train.reports) == [*REPORTS, REPORTS[0]]
  assert train[1]["subject_id"] == "p1" and train[1]["views"] == ["frontal"] and len(train[1]["images"]) == 1
  with pytest.raises(UserError, match="data.name=my_reports:make_builders"):
    open_split(make_config(NETWORK, PHANTOMS, prepared | {"data.name": "my_reports:make_builders"}), "train")


def test_tokenizer(tmp_path):
  kind = "my_tokenizer:Characters"
  tokenizer = build_tokenizer(make_config(tokenizer__kind=kind), ["No effusion.", "Clear lungs"])
  tokenizer.save(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert loaded.kind == kind and loaded.get_vocabulary() == tokenizer.get_vocabulary()
  assert loaded.vocab_size == len(loaded.get_vocabulary())
  assert loaded.decode(loaded.encode_for_training("clear  lungs", 60)) == "clear lungs ."
  assert loaded.encode("x clear")[0] == loaded.unk_id
  with pytest.raises(UserError, match="tokenizer.kind=my_tokenizer:write_description.*Tokenizer"):
    build_tokenizer(make_config(tokenizer__kind="my_tokenizer:write_description"), [])


@pytest.mark.parametrize("microbatches", [1, 2])
def test_loss_term(microbatches):
  rng = np.random.default_rng(0)
  logits, mask = rng.standard_normal((4, 3, 5)), np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
  valid = np.array([True, True, True, False])
  log_z = np.log(np.exp(logits).sum(-1)) ** 2
  expected = 0.5 * sum(log_z[row][mask[row]].mean() for row in range(3)) / 4
  config = make_config(train__loss_term="my_loss:z_loss", train__loss_term_weight=0.5,
                       train__grad_accum_steps=microbatches)
  total = sum(compute_own_term(config, ModelOutputs(jnp.asarray(logits[part]), None, None), {"valid": valid[part]},
                               jnp.asarray(mask[part]))
              for part in np.split(np.arange(4), microbatches))
  np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_a_loss_term_of_another_shape_is_refused(monkeypatch):
  monkeypatch.setattr(importlib.import_module("my_loss"), "z_loss", lambda outputs, batch, mask: jnp.zeros(()))
  config = make_config(train__loss_term="my_loss:z_loss")
  with pytest.raises(UserError, match=r"train.loss_term=my_loss:z_loss.*\[\].*\[4\]"):
    jax.eval_shape(lambda valid: compute_own_term(config, None, {"valid": valid}, None), np.ones(4, bool))


def test_schedule():
  config = make_config(optimizer__schedule="my_schedule:halves", optimizer__warmup_steps=10, train__num_steps=40)
  schedule = learning_rate(config, 0.8)
  rates = [float(schedule(step)) for step in (0, 5, 10, 19, 21, 29, 31, 39)]
  np.testing.assert_allclose(rates, [0, 0.4, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2], rtol=1e-5)


def test_metric():
  scores, rows = {"intervals": {}, "notes": {}}, [{}, {}]
  metrics = load_own_metrics("my_metric:length_ratio")
  metrics |= {"broken": lambda references, hypotheses: 1 / 0, "single": lambda references, hypotheses: np.ones(1)}
  add_own_metrics(scores, rows, metrics, ["a b", "a b c d"], ["a", "a b c d"], np.array([[2, 0], [0, 2]]))
  assert scores["own_metrics"] == {"length_ratio": 0.75}
  assert scores["intervals"]["own_metrics"]["length_ratio"] == {"low": pytest.approx(0.5, abs=0.02),
                                                                "high": pytest.approx(1, abs=0.02)}
  assert [row["length_ratio"] for row in rows] == [0.5, 1]
  assert "ZeroDivisionError" in scores["notes"]["broken"] and "[1]" in scores["notes"]["single"]
  with pytest.raises(UserError, match="length_ratio"):
    load_own_metrics("my_metric:length_ratio, other:length_ratio")


@pytest.mark.slow
def test_all_examples_together_train_evaluate_and_report(prepared, source, tmp_path, capsys):
  fields = NETWORK | PHANTOMS | prepared | {
      "encoder.name": "my_encoder:make_spec", "tokenizer.kind": "my_tokenizer:Characters", "tokenizer.max_length": 20,
      "train.loss_term": "my_loss:z_loss", "optimizer.schedule": "my_schedule:halves", "optimizer.warmup_steps": 1,
      "eval.metrics": "my_metric:length_ratio", "train.num_steps": 3, "train.eval_every": 3, "train.log_every": 1,
      "train.batch_size": 2, "train.grad_accum_steps": 2, "eval.num_permutations": 1}
  workdir = tmp_path / "run"
  run = lambda *argv: cli.main(list(map(str, argv)))
  assert run("train", "--config", "phantom", *make_arguments(fields), "--workdir", workdir) == 0
  assert run("evaluate", "--workdir", workdir) == 0
  scores = json.loads((workdir / "eval" / "test-3.json").read_text())
  assert scores["num_studies"] == 2 and set(scores["own_metrics"]) == {"length_ratio"}
  assert "length ratio" in (workdir / "eval" / "test-3.html").read_text()
  capsys.readouterr()
  assert run("report", "--workdir", workdir, source / "7.png") == 0
