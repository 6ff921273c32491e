"""Complete runs of a tiny model: training, resuming, extending, evaluating, and the errors a user can make."""

import json
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.builder.prepare import prepare
from input_pipeline.pipeline import eval_batches
from mcsam_jax import cli
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.workdir import acquire_lock, open_workdir
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.evaluation import evaluate as evaluation
from mcsam_jax.evaluation.compare import compare
from mcsam_jax.inference.image_embeddings import make_image_embedder
from mcsam_jax.inference.load import load_model
from mcsam_jax.models.inputs import visual_inputs
from mcsam_jax.training.train import train
from tests.testing.tiny import make_arguments, NETWORK, PHANTOMS
from tests.testing.training_run import read_params

TINY = NETWORK | PHANTOMS | {
    "data.augment": True, "encoder.train_batch_norm": True, "train.num_steps": 60, "train.eval_every": 30,
    "train.log_every": 30, "optimizer.ema_decay": 0.9, "eval.num_permutations": 2, "eval.html_report": False,
}
FIRST_HALF = 30


def make_overrides(data_dir, **changes):
  return make_arguments(TINY, {"data.data_dir": data_dir}, **changes)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data")
  prepare(configs.load_config("phantom", make_overrides(directory)), log=lambda line: None)
  return directory


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
  """Returns the workdir of an uninterrupted run of 60 steps."""
  workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
  train(configs.load_config("phantom", make_overrides(data_dir)), str(workdir), log=lambda line: None)
  return workdir


def run_mcsam(capsys, *argv):
  """Returns exit status and stderr of a command."""
  status = cli.main(list(map(str, argv)))
  return status, capsys.readouterr().err.strip()


def run_train(capsys, workdir, *overrides):
  """Returns exit status and stderr of `mcsam train`."""
  return run_mcsam(capsys, "train", "--config", "phantom", "--workdir", workdir, *overrides)


@pytest.fixture(scope="module")
def evaluated(trained):
  """Returns the reports of `mcsam evaluate` on the test split, written beside scores and HTML report."""
  status = cli.main(["evaluate", "--workdir", str(trained), "--split", "test", "--config.eval.html_report=true",
                     "--config.eval.explain=true"])
  assert status == 0
  return read_reports(trained, "test-60")


def read_reports(workdir, name):
  """Returns the generated reports of an evaluation."""
  return [json.loads(line)["generated"] for line in (workdir / "eval" / f"{name}.jsonl").read_text().splitlines()]


def test_evaluate_scores_each_study_once_beside_baselines_and_control(trained, evaluated):
  scores = json.loads((trained / "eval" / "test-60.json").read_text())
  lines = [json.loads(line) for line in (trained / "eval" / "test-60.jsonl").read_text().splitlines()]
  assert scores["num_studies"] == len(lines) == len({line["id"] for line in lines}) == 6
  assert scores["num_subjects"] == len({line["subject"] for line in lines}) == 6
  assert all(line["labels"]["reference"].keys() == line["labels"]["generated"].keys() for line in lines)
  train_ids = open_workdir(trained).open_split("train").ids
  for line in lines:
    assert " ".join(line["explanation"]["words"]) == line["generated"]
    assert len(line["explanation"]["log_probs"]) == len(line["explanation"]["words"])
    assert max(line["explanation"]["log_probs"]) <= 0
    assert line["explanation"]["slots"][0]["weight"] >= line["explanation"]["slots"][1]["weight"] > 0
    assert {near["id"] for near in line["explanation"]["neighbors"]} <= set(train_ids)
  assert not list(trained.glob("eval/*.unscored.jsonl"))
  assert set(scores["baselines"]) == {"constant", "nearest", "medoid", "nearest_model_features",
                                      "medoid_model_features"}
  assert set(scores["nlg"]) == {"r2gen", "clean", "raw"}
  assert scores["controls"]["shuffled_images"]["nlg"]["r2gen"].keys() == scores["nlg"]["r2gen"].keys()
  assert scores["pretraining_data"] == "none"
  assert scores["seeds"] == [0] and {"attributes", "pointing_game"} <= scores.keys()
  config, manifest = (json.loads((trained / name).read_text()) for name in (
      "config.json", "checkpoints/60/manifest.json"))
  for software in (scores["software"], config["software"], manifest["metadata"]["software"]):
    assert software["mcsam_jax"] and "commit" in software and software["packages"]["jax"] == jax.__version__
  assert (trained / "metrics.png").stat().st_size > 5000
  page = (trained / "eval" / "test-60.html").read_text()
  assert all(json.dumps(line["generated"])[1:-1] in page and line["id"] in page for line in lines)

  path = str(trained / "eval" / "test-60.jsonl")
  result = compare([path], [path], log=lambda line: None)
  assert (result["protocol"], result["labeler"], result["num_studies"]) == ("r2gen", "stored", 6)
  assert result["a"]["nlg"]["BLEU_4"] == pytest.approx(scores["nlg"]["r2gen"]["BLEU_4"])
  assert result["a"]["labels"]["micro"] == pytest.approx(scores["labels"]["micro"])
  assert set(result["a_minus_b"]["nlg"]["CIDEr"].values()) == {0}


def test_reports_are_kept_when_their_scoring_fails(trained, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("eval"))
  (workdir / "eval").mkdir()
  (workdir / "eval" / "test-60.jsonl").write_text("of an earlier call")

  def full_disk(**arguments):
    raise OSError("no space")

  monkeypatch.setattr(evaluation, "score_reports", full_disk)
  with pytest.raises(OSError, match="no space"):
    evaluation.evaluate(str(workdir), "test", log=lambda line: None)
  lines = [json.loads(line) for line in (workdir / "eval" / "test-60.unscored.jsonl").read_text().splitlines()]
  assert (workdir / "eval" / "test-60.jsonl").read_text() == "of an earlier call"
  assert len(lines) == 6 and all(line["generated"] and line["reference"] for line in lines)
  assert not (workdir / "eval" / "test-60.json").exists()


def test_pooled_features_do_not_depend_on_batch_or_order(trained):
  work = open_workdir(trained)
  split, config, mesh = work.open_split("test"), work.config, make_mesh(work.config)
  with jax.set_mesh(mesh):
    member = load_model(work, mesh)
    batches = list(eval_batches(split, work.tokenizer, config, 4))
    embed_images = make_image_embedder(member, config, mesh)
    pooled = embed_images(batches, len(split))
    np.testing.assert_array_equal(embed_images(batches[::-1], len(split)), pooled)
  assert pooled.shape == (6, config.model.width) and np.ptp(pooled, 0).max() > 0
  memory = member.model.apply(member.variables, method="project_memory")
  for batch in batches:
    encoded = member.model.apply(member.variables, *visual_inputs(config, batch), memory, False, method="encode_images")
    means = [patches[mask].mean(0) for patches, mask in zip(np.asarray(encoded.patches), encoded.patch_mask)]
    np.testing.assert_allclose(pooled[batch["record"]], means, rtol=1e-4, atol=1e-5)


def test_a_best_metric_that_needs_a_labeler_is_refused_without_one(data_dir, tmp_path, capsys):
  fields = make_overrides(data_dir, train__best_metric="CIDEr_macro_F1", eval__labeler="none")
  status, err = run_train(capsys, tmp_path / "run", *fields)
  assert status == 2 and "train.best_metric=CIDEr_macro_F1" in err and "eval.labeler=none" in err
  assert not (tmp_path / "run").exists()


def test_neither_an_ensemble_of_two_copies_nor_another_batch_size_changes_a_report(trained, evaluated, tmp_path,
                                                                                  capsys):
  twin = tmp_path / "twin"
  shutil.copytree(trained, twin)
  before = (trained / "eval" / "test-60.json").read_bytes()
  # 6 studies: a padded last batch before, one full batch now.
  status, err = run_mcsam(capsys, "evaluate", "--workdir", trained, "--split", "test", "--ensemble", twin,
                          "--config.decode.batch_size=6")
  assert status == 0, err
  assert read_reports(trained, "test-60-with-twin") == evaluated
  alone, joint = ([json.loads(line)["log_prob"] for line in
                   (trained / "eval" / f"test-60{name}.jsonl").read_text().splitlines()] for name in ("", "-with-twin"))
  np.testing.assert_allclose(alone, joint, atol=1e-4)
  scores = json.loads((trained / "eval" / "test-60-with-twin.json").read_text())
  assert scores["models"] == [{"workdir": str(trained), "step": 60}, {"workdir": str(twin), "step": 60}]
  assert (trained / "eval" / "test-60.json").read_bytes() == before


def test_evaluation_with_other_decode_fields_has_its_own_file(trained, evaluated, capsys):
  before = (trained / "eval" / "test-60.json").read_bytes()
  status, err = run_mcsam(capsys, "evaluate", "--workdir", trained, "--config.decode.beam_size=1")
  assert status == 0, err
  assert (trained / "eval" / "test-60.json").read_bytes() == before
  assert json.loads((trained / "eval" / "test-60-beam_size=1.json").read_text())["decode"]["beam_size"] == 1


def test_incompatible_models_are_refused_as_an_ensemble(trained, tmp_path, capsys):
  first, other = tmp_path / "first", tmp_path / "other"
  shutil.copytree(trained, first)
  shutil.copytree(trained, other)
  config = (first / "config.json").read_text()
  (first / "config.json").write_text(config.replace('"retrieval_weight": 0.0', '"retrieval_weight": 0.5'))
  for file, old, new, problem in (
      ("config.json", '"use_alignment": true', '"use_alignment": false', "without alignment"),
      ("config.json", '"max_length": 12', '"max_length": 13', "tokenizer.max_length: 12, 13"),
      ("tokenizer/tokenizer.json", '"heart"', '"hearts"', "their vocabularies differ")):
    text = (other / file).read_text()
    assert old in text
    (other / file).write_text(text.replace(old, new))
    status, err = run_mcsam(capsys, "evaluate", "--workdir", first, "--ensemble", other)
    assert status == 2 and problem in err and str(other) in err and len(err.splitlines()) == 1
    (other / file).write_text(text)


def test_a_workdir_of_another_config_is_refused_and_the_field_is_named(data_dir, trained, capsys):
  overrides = make_overrides(data_dir, model__dropout=0.3)
  status, err = run_train(capsys, trained, *overrides)
  assert status == 2 and "model.dropout: 0.3, 0.1" in err and len(err.splitlines()) == 1


def test_two_runs_cannot_train_in_one_workdir(data_dir, trained, capsys):
  with acquire_lock(trained):
    status, err = run_train(capsys, trained, *make_overrides(data_dir))
  assert status == 2 and "another run is training" in err


def test_evaluate_refuses_overrides_of_the_model(trained, capsys):
  status, err = run_mcsam(capsys, "evaluate", "--workdir", trained, "--config.memory.top_k=1")
  assert status == 2 and "--config.memory.top_k" in err


def test_a_memory_bank_of_other_settings_is_refused(data_dir, tmp_path, capsys):
  few = {"memory_init__kind": "kmeans", "memory_init__num_topics": 4}
  status, err = run_mcsam(capsys, "init-memory", "--config", "phantom", "--workdir", tmp_path,
                          *make_overrides(data_dir, **few))
  assert status == 0, err
  few["memory_init__num_topics"] = 3
  status, err = run_train(capsys, tmp_path, *make_overrides(data_dir, **few))
  assert status == 2 and "made with other settings" in err and "mcsam init-memory" in err


def test_evaluate_before_train(tmp_path, capsys):
  status, err = run_mcsam(capsys, "evaluate", "--workdir", tmp_path, "--split", "test")
  assert status == 2 and "config.json not found" in err and "mcsam train" in err


def test_a_missing_checkpoint_is_named_with_the_existing_ones(trained, capsys):
  status, err = run_mcsam(capsys, "evaluate", "--workdir", trained, "--step", "7")
  assert status == 2 and "step 7" in err and "30, 60" in err


def copy_damaged(trained, workdir):
  """Returns a copy of a workdir, and the largest file of its newest checkpoint, which is cut to half its size."""
  shutil.copytree(trained, workdir)
  files = [path for path in (workdir / "checkpoints" / "60").rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:largest.stat().st_size // 2])
  return workdir, largest


def test_evaluate_names_the_damaged_file_of_a_checkpoint(trained, tmp_path, capsys):
  workdir, file = copy_damaged(trained, tmp_path / "cut")
  status, err = run_mcsam(capsys, "evaluate", "--workdir", workdir, "--step", "60")
  assert status == 2 and len(err.splitlines()) == 1
  assert f"checkpoint 60 is damaged: {file} has " in err and "--step" in err and "30" in err


def test_a_run_resumed_before_a_damaged_checkpoint_equals_an_uninterrupted_one_bit_for_bit(data_dir, trained, tmp_path):
  workdir, file = copy_damaged(trained, tmp_path / "cut")
  lines = []
  train(configs.load_config("phantom", make_overrides(data_dir)), str(workdir), log=lines.append)
  assert any("checkpoint 60 is damaged" in line and str(file) in line for line in lines)
  assert f"resumed at step {FIRST_HALF}" in lines
  rows, expected = ([json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
                    for path in (workdir, trained))
  assert [row["step"] for row in rows] == [row["step"] for row in expected] == [30, 60]      # each step once
  same = lambda row: {name: value for name, value in row.items() if name.startswith(("train/", "val/"))}
  assert list(map(same, rows)) == list(map(same, expected)) and "val/CIDEr" in rows[1] and "train/loss" in rows[1]
  console = (workdir / "train.log").read_text()
  assert console.count("== mcsam train") == 2 and all(line in console for line in lines)
  jax.tree.map(np.testing.assert_array_equal, read_params(workdir), read_params(trained))


def test_training_before_prepare(tmp_path, capsys):
  overrides = make_overrides(tmp_path / "nothing")
  status, err = run_train(capsys, tmp_path / "w", *overrides)
  assert status == 2 and "mcsam prepare" in err


def test_an_unknown_field_stops_before_any_work(tmp_path, capsys):
  status, err = run_train(capsys, tmp_path / "w", "--config.train.batchsize=3")
  assert status == 2 and "did you mean train.batch_size" in err and not (tmp_path / "w").exists()
