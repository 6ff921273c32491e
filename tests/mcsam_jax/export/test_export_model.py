"""An exported model gives the same reports where nothing else is left, and holds nothing that must stay behind."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import mcsam_jax
from mcsam_jax import cli
from mcsam_jax.checkpoints.exported import describe_bytes
from mcsam_jax.checkpoints.workdir import create_workdir, open_workdir
from mcsam_jax.demo.demo import write_image_files
from mcsam_jax.errors import UserError
from mcsam_jax.export.export_model import export_model
from tests.testing.tiny import make_config
from tests.testing.tiny_workdir import FIELDS, STEP

ROOT = pathlib.Path(__file__).parents[3]


def write_scores(workdir):
  """Writes scores of the test split as `mcsam evaluate` does, with a report that must not leave the workdir."""
  numbers = {"BLEU_1": 0.5, "CIDEr": 1.25, "METEOR": None}
  scores = {
      "num_studies": 6, "labeler": "phantom", "decode": {"search": "beam"}, "most_common_report": "a secret report",
      "preparation": {"main_protocol": "r2gen"}, "nlg": {"r2gen": numbers}, "labels": {"micro": {"f1": 0.75}},
      "intervals": {"nlg": {"r2gen": {"BLEU_1": {"low": 0.4, "high": 0.625}}}, "labels": None},
      "baselines": {"constant": {"nlg": {"BLEU_1": 0.375}, "labels": None}},
      "controls": {"shuffled_images": {"nlg": {"r2gen": {"BLEU_1": 0.25}}, "labels": None}}}
  (workdir / "eval").mkdir(exist_ok=True)
  (workdir / "eval" / f"test-{STEP}.json").write_text(json.dumps(scores))
  (workdir / "eval" / "constant.json").write_text('{"BLEU_1": {"report": "a secret report"}}')


@pytest.fixture(scope="module")
def original(workdir, tiny_model, tmp_path_factory):
  """Returns a copy of the workdir, its model, its reports of three studies, and the folders of their images."""
  images = tmp_path_factory.mktemp("images")
  for number, record in enumerate(open_workdir(workdir).open_split("val")):
    if number < 3:
      write_image_files(record, images / f"{number}")
  studies = sorted(images.iterdir())
  copy = tmp_path_factory.mktemp("original") / "run"
  shutil.copytree(workdir, copy)
  write_scores(copy)
  return copy, tiny_model, tiny_model.generate(studies, num_return=2), studies


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
  """Returns the exported model, moved after the workdir was deleted; the data are where no test of it can find them."""
  made = tmp_path_factory.mktemp("exported") / "made"
  export_model(str(original[0]), str(made), stablehlo=True, log=lambda line: None)
  shutil.rmtree(original[0])
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path_factory.mktemp("empty"))                # where the exported data.data_dir would be
    yield shutil.move(made, tmp_path_factory.mktemp("elsewhere") / "model")


@pytest.fixture(scope="module")
def model(exported):
  return mcsam_jax.load(exported)


def test_an_exported_model_gives_the_same_reports(original, model):
  _, first, expected, studies = original
  assert model.step == first.step == STEP and model.memory_topics() == first.memory_topics()
  for report, other in zip(model.generate(studies, num_return=2), expected):
    assert report.similarity == other.similarity and report.warnings == other.warnings
    for each, same in zip(report.nbest, other.nbest, strict=True):
      assert each.text == same.text and each.log_prob == same.log_prob
      np.testing.assert_array_equal(each.token_log_probs, same.token_log_probs)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.variables), jax.device_get(first.variables))


@pytest.mark.slow
def test_report_opens_an_exported_model(original, exported, capsys):
  _, _, expected, studies = original
  assert cli.main(["report", "--workdir", str(exported), *map(str, studies), "--json"]) == 0
  output = json.loads(capsys.readouterr().out)
  assert [study["report"] for study in output["studies"]] == [report.text for report in expected]
  assert output["step"] == STEP and output["ood_threshold"]


def test_the_folder_is_listed_and_holds_no_path_and_no_report(original, exported):
  info = json.loads((exported / "export.json").read_text())
  files = {str(path.relative_to(exported)): path for path in exported.rglob("*") if path.is_file()}
  assert info["files"] == {name: describe_bytes(path.read_bytes()) for name, path in files.items()
                           if name != "export.json"}
  assert set(files) == {"README.md", "config.json", "encoder.safetensors", "export.json", "model.safetensors",
                        "ood.npz", "search.json", "search.stablehlo", "tokenizer/tokenizer.json"}
  assert info["step"] == STEP and info["versions"]["mcsam_jax"] == mcsam_jax.__version__
  for name, path in files.items():
    data = path.read_bytes()
    for secret in (str(original[0]), str(exported), str(ROOT), sys.prefix, "/home/someone", "secret", "opt_state"):
      assert secret.encode() not in data, name
    if path.suffix in (".json", ".md"):
      assert not re.search(r'[\s"`(]/[a-z]+/', path.read_text()), name          # an absolute path


def test_the_model_card_has_scores_with_intervals_limits_and_licences(exported):
  card = (exported / "README.md").read_text()
  assert "| BLEU_1 | 0.500 [0.400, 0.625] | 0.375 | 0.250 |" in card.splitlines()
  assert "| CIDEr | 1.250 | - | - |" in card.splitlines() and "METEOR" not in card
  assert "findings, micro F1 | 0.750" in card and "6 studies" in card
  assert "not a medical device" in card and "resnet.pth" in card and "icence" in card and "phantom" in card


def test_no_report_of_a_restricted_data_set_leaves(workdir, tmp_path):
  copy, out = tmp_path / "run", tmp_path / "out"
  shutil.copytree(workdir, copy)
  config = json.loads((copy / "config.json").read_text())
  config["data"]["restricted"] = True
  (copy / "config.json").write_text(json.dumps(config))
  write_scores(copy)
  export_model(str(copy), str(out), log=lambda line: None)
  work = open_workdir(copy)
  sentences = {sentence.strip().lower() for split in ("train", "val", "test") for report in
               work.open_split(split).reports for sentence in report.split(".")}
  sentences = {sentence.encode() for sentence in sentences if len(sentence.split()) > 2} | {b"secret"}
  ids = {name.encode() for split in ("train", "val", "test") for name in work.open_split(split).ids}
  assert len(sentences) > 10 and len(ids) > 20
  for path in out.rglob("*"):
    data = path.read_bytes().lower() if path.is_file() else b""
    assert not [each for each in sentences | ids if each in data], path
  assert "restricted" in (out / "README.md").read_text()


def test_training_in_an_exported_folder_is_refused(exported, tmp_path):
  config = make_config(FIELDS, {"data.data_dir": tmp_path, "encoder.frozen": False})
  with pytest.raises(UserError, match="exported"):
    create_workdir(exported, config, log=lambda line: None)


def test_other_steps_and_damaged_files_are_named(exported, tmp_path):
  with pytest.raises(UserError, match="99"):
    mcsam_jax.load(exported, step=99)
  for name in ("model.safetensors", "encoder.safetensors", "export.json"):
    copy = tmp_path / name
    shutil.copytree(exported, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    data[3] ^= 8
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
      mcsam_jax.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=name if name != "export.json" else str(copy)):
      mcsam_jax.load(copy)


def test_nothing_is_overwritten(exported, tmp_path, capsys):
  before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
  assert cli.main(["export", "--workdir", str(exported), str(exported)]) == 2
  assert str(exported) in capsys.readouterr().err
  assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before
  assert cli.main(["export", "--workdir", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
  assert "nowhere" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_program_gives_the_same_ids_where_the_package_cannot_be_imported(original, exported, model, tmp_path):
  """Runs the example in a folder of its own, in a Python that finds no mcsam_jax."""
  _, _, expected, studies = original
  size, num_views = model.config.data.image_size, model.config.data.num_views
  images = np.zeros((len(studies), num_views, size, size, 1), np.uint8)
  for row, study in enumerate(studies):
    for column, path in enumerate(sorted(study.iterdir())):               # frontal.jpg, lateral.jpg
      images[row, column] = model.preprocess(path)
  np.save(tmp_path / "images.npy", images)
  info = json.loads((exported / "search.json").read_text())
  assert info["platforms"] == ["cpu", "cuda", "tpu"] and info["batch_size"] == "any"
  blocker = ("import runpy, sys\nfor name in ('mcsam_jax', 'input_pipeline', 'configs', 'flax', 'tensorflow'):\n"
             "  sys.modules[name] = None\n"
             f"sys.argv[1:] = [{str(exported)!r}, 'images.npy']\n"
             f"runpy.run_path({str(ROOT / 'examples' / 'run_stablehlo.py')!r})")
  output = subprocess.run([sys.executable, "-c", blocker], cwd=tmp_path, capture_output=True, text=True, check=False)
  assert output.returncode == 0, output.stderr
  lines = [line.split(" ", 1) for line in output.stdout.splitlines()]
  assert [text for _, text in lines] == [report.text for report in expected]
  np.testing.assert_allclose([float(score) for score, _ in lines], [report.log_prob for report in expected], atol=2e-3)
