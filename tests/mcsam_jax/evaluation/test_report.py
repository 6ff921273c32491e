"""`mcsam report`: the same reports as `mcsam evaluate` for the same images, errors and warnings about files."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import types

import jax
import numpy as np
import PIL.Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
import pytest

from input_pipeline.batch import empty_batch
from input_pipeline.builder.prepare import prepare
from input_pipeline.pipeline import eval_batches
from mcsam_jax import cli
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.checkpoints.workdir import create_workdir, init_encoder_variables, open_workdir
from mcsam_jax.demo import write_image_files
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.evaluation import report as report_verb
from mcsam_jax.evaluation import report_text
from mcsam_jax.inference.feature_cache import load_split_features
from mcsam_jax.inference.generate import ReportGenerator
from mcsam_jax.inference.load import load_model
from mcsam_jax.models.initialize import make_model
from mcsam_jax.training.train_state import init_train_state
from tests.testing.tiny import make_config, NETWORK

TINY = NETWORK | {
    "data.phantom.num_train": 20, "data.phantom.num_val": 10, "data.phantom.num_test": 1, "data.image_size": 32,
    "data.short_side": 64, "encoder.name": "resnet_tiny", "encoder.frozen": True, "memory_init.kind": "random",
    "tokenizer.threshold": 1, "tokenizer.max_length": 12, "train.host_threads": 1, "decode.beam_size": 2,
    "decode.batch_size": 4, "prepare.num_workers": 1,
}
STEP = 7


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Returns a workdir whose checkpoint has random weights that give different studies different reports."""
  root = tmp_path_factory.mktemp("report")
  config = make_config(TINY, {"data.data_dir": root / "data", "encoder.weights": root / "encoder.npz"})
  save_weights(root / "encoder.npz", init_encoder_variables(config), {"pretraining_data": "none"})
  prepare(config, log=lambda line: None)
  work = create_workdir(str(root / "run"), config, log=lambda line: None)
  sample = empty_batch(config, 1, feature_shape=(4, 128))
  model = make_model(config, work.tokenizer.vocab_size, work.patch_grid)
  state = jax.jit(lambda: init_train_state(model, config, sample))()
  state.params["decoder"]["logits"]["kernel"] *= 20
  checkpoints = Checkpoints(work.path, 1)
  checkpoints.save(STEP, state, {})
  checkpoints.close()
  return work.path


@pytest.fixture(scope="module")
def evaluated(workdir):
  """Returns study id -> (record, report that `mcsam evaluate` generates) of the val split."""
  work = open_workdir(workdir)
  split, mesh = work.open_split("val"), make_mesh(work.config)
  with jax.set_mesh(mesh):
    member = load_model(work, mesh, None, lambda line: None)
    features = load_split_features(work, split, lambda line: None)
    reports = ReportGenerator([member.model], work.config, work.tokenizer, mesh, "beam")(
        [member.variables], eval_batches(split, work.tokenizer, work.config, 4, features))
  assert len({report.text for report in reports}) > 3
  return {split.ids[report.record]: (split[report.record], report) for report in reports}


@pytest.fixture(scope="module")
def folders(evaluated, tmp_path_factory):
  """Returns a folder that has one folder of images per val study, named like the study."""
  root = tmp_path_factory.mktemp("images")
  for name, (record, _) in evaluated.items():
    write_image_files(record, root / name)
  return root


def run(capsys, *argv):
  """Returns status, stdout and stderr of `mcsam`."""
  status = cli.main(list(map(str, argv)))
  output = capsys.readouterr()
  return status, output.out, output.err


def write_dicom(jpeg, path, **fields):
  """Writes the decoded pixels of a grayscale JPEG as a DICOM file."""
  with PIL.Image.open(jpeg) as image:
    pixels = np.asarray(image.convert("L"))
  file = Dataset()
  file.SOPClassUID, file.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
  file.PatientName, file.PatientID, file.Modality, file.StudyInstanceUID = "Doe^Jane", "MRN0042", "DX", "1.2.3"
  file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
  file.BitsAllocated = file.BitsStored = 8
  file.HighBit, file.PixelRepresentation, file.PixelData = 7, 0, pixels.tobytes()
  for name, value in fields.items():
    setattr(file, name, value)
  file.file_meta = FileMetaDataset()
  file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  file.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def call(workdir, folders, tmp_path_factory):
  """Runs `mcsam report --json` once, on all folders and on files of the user.

  The files are two DICOM images of one study, a DICOM image of another modality, a photograph, a truncated PNG, files
  with changed bytes on which decoders raise odd exceptions or end the process, and a pipe.

  Returns:
    `files`, the folder of these files; `two_views`, the val study that the DICOM images come from; `json`, `status`,
    `out` and `err` of the call; `predictor`, the model that it loaded.
  """
  files = tmp_path_factory.mktemp("files")
  two_views = next(folder for folder in sorted(folders.iterdir()) if len(list(folder.iterdir())) == 2)
  for number, (view, position) in enumerate([("lateral", "LL"), ("frontal", "PA")]):
    write_dicom(two_views / f"{view}.jpg", files / f"IM{number}", ViewPosition=position)
  write_dicom(two_views / "frontal.jpg", files / "IM2", Modality="MR", StudyInstanceUID="1.2.4")
  noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
  PIL.Image.fromarray(noise).save(files / "photo.png")
  (files / "cut.png").write_bytes((files / "photo.png").read_bytes()[:9000])
  for name in ("598103ee.tif", "gdcm_abort.dcm", "gdcm_segv.dcm"):
    (files / name).write_bytes((pathlib.Path(__file__).parents[2] / "cases" / "mutated" / name).read_bytes())
  os.mkfifo(files / "pipe.png")
  predictors, init = [], report_verb.Predictor.__init__
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report_verb.Predictor, "__init__",
                  lambda self, *arguments: (predictors.append(self), init(self, *arguments))[0])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      status = cli.main(["report", "--workdir", str(workdir), str(folders), *map(str, sorted(files.iterdir())),
                         "--json", "--config.eval.explain=true"])
  return types.SimpleNamespace(files=files, two_views=two_views.name, json=json.loads(out.getvalue()), status=status,
                               out=out.getvalue(), err=err.getvalue(), predictor=predictors[0])


def test_files_get_the_reports_that_evaluate_generates(call, evaluated, folders):
  assert call.json["step"] == STEP and call.json["search"] == "beam" and call.json["notice"] == report_text.NOTICE
  for study, (name, (record, report)) in zip(call.json["studies"], evaluated.items()):    # the 10 val studies
    assert [image["file"] for image in study["images"]] == [f"{folders}/{name}/{view}.jpg" for view in record["views"]]
    assert study["report"] == report.text
    assert study["log_prob"] == pytest.approx(report.log_prob, abs=2e-3)
  assert sum(bool(study["warnings"]) for study in call.json["studies"][:10]) <= 1    # val images set the threshold


def test_dicom_images_get_the_report_of_their_pixels_and_reveal_no_name(call, evaluated):
  study = call.json["studies"][10]
  assert [(image["file"], image["view"], image["view_source"]) for image in study["images"]] == [
      (f"{call.files}/IM1", "frontal", "header"), (f"{call.files}/IM0", "lateral", "header")]
  assert study["report"] == evaluated[call.two_views][1].text
  for secret in ("Doe", "MRN", "1.2.3", "1.2.4"):
    assert secret not in call.out + call.err


def test_a_photograph_gets_a_report_with_warnings(call):
  study, = call.json["studies"][11:]
  assert study["images"][0]["file"] == f"{call.files}/photo.png" and study["report"]
  color, unlike_training = study["warnings"]
  assert "photo.png" in color and "color" in color
  assert "photo.png" in unlike_training and f"{study['images'][0]['similarity']:.2f}" in unlike_training
  assert study["images"][0]["similarity"] < call.json["ood_threshold"]


def test_unreadable_files_are_listed_and_the_others_get_reports(call):
  assert call.status == 2 and "6 file(s)" in call.err and "12 report(s)" in call.err and "Traceback" not in call.err
  assert sorted(file["file"].removeprefix(f"{call.files}/") for file in call.json["unreadable"]) == [
      "598103ee.tif", "IM2", "cut.png", "gdcm_abort.dcm", "gdcm_segv.dcm", "pipe.png"]
  assert f"{call.files}/IM2: the header says magnetic resonance" in call.err
  assert f"{call.files}/cut.png: the image can't be decoded: image file is truncated" in call.err


def test_one_program_serves_any_number_of_studies(call):
  assert call.predictor._generate._search_fn._cache_size() == call.predictor._encode._cache_size() == 1


def test_calls_without_any_report(workdir, call, folders, tmp_path, capsys):
  status, out, err = run(capsys, "report", "--workdir", workdir, call.files / "cut.png", "--json")
  assert status == 2 and "0 report(s) written" in err and "loaded" not in err and json.loads(out)["studies"] == []
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "notes.txt").write_text("")
  status, out, err = run(capsys, "report", "--workdir", workdir, tmp_path / "empty")
  assert status == 2 and not out and f"no image in {tmp_path / 'empty'} (1 other files)" in err
  status, out, err = run(capsys, "report", "--workdir", workdir, tmp_path / "empty", call.files / "cut.png",
                         "--out", tmp_path / "none.txt")
  assert status == 2 and not out and not (tmp_path / "none.txt").exists()
  assert f"unreadable: {tmp_path / 'empty'}: " in err and "2 file(s)" in err
  status, _, err = run(capsys, "report", "--workdir", workdir, call.files / "photo.png", "--html", "x.txt")
  assert status == 2 and "--html x.txt" in err
  status, _, err = run(capsys, "report", "--workdir", tmp_path, call.files / "photo.png")
  assert status == 2 and str(tmp_path) in err
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, "--config.model.width=8")
  assert status == 2 and "--config.model.width" in err
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, "--step", 99)
  assert status == 2 and "99" in err


def test_text_shows_studies_notes_and_unreadable_files(call):
  study = call.json["studies"][11] | {"report": "the heart is normal . no effusion ."}
  title, *warnings, report, log_prob = report_text.format_study(study, 3).splitlines()
  assert title == f"[3] {call.files}/photo.png (frontal, guessed from the order)" and "log-probability" in log_prob
  assert len(warnings) == 2 and all(line.startswith("    warning: ") for line in warnings)
  assert report == "    The heart is normal. No effusion."
  text = report_text.format_output(call.json, with_studies=True)
  assert text.count("log-probability") == 12 and text.endswith(report_text.NOTICE)
  assert text.count(str(call.files / "IM2")) == text.count(str(call.files / "cut.png")) == 1


def test_json_holds_the_numbers_that_explain_each_report(call, workdir):
  ids = set(open_workdir(workdir).open_split("train").ids)
  for study in call.json["studies"]:
    explanation = study["explanation"]
    words, log_probs = explanation["words"], explanation["log_probs"]
    assert " ".join(words) == study["report"] and len(log_probs) == len(words)
    assert study["log_prob"] - 1e-3 <= sum(log_probs) + 1e-3 and max(log_probs) <= 0
    assert sum(slot["weight"] for slot in explanation["slots"]) == pytest.approx(1, abs=1e-3)    # all 12 are listed
    assert len(explanation["neighbors"]) == 3 and {neighbor["id"] for neighbor in explanation["neighbors"]} <= ids


@pytest.mark.slow
def test_text_json_and_out_hold_the_same_report(workdir, evaluated, folders, tmp_path, capsys):
  first, (_, written) = next(iter(evaluated.items()))
  status, out, err = run(capsys, "report", "--workdir", workdir, folders / first)
  assert status == 0 and report_text.capitalize_report(written.text) in " ".join(out.split())
  assert report_text.NOTICE in out and "loaded step" in err and "loaded step" not in out
  status, out, _ = run(capsys, "report", "--workdir", workdir, folders / first, "--out", tmp_path / "r.json", "--json")
  assert status == 0 and not out
  assert json.loads((tmp_path / "r.json").read_text())["studies"][0]["report"] == written.text


@pytest.mark.slow
def test_a_workdir_is_enough_without_the_records(workdir, call, evaluated, folders, tmp_path, capsys):
  """As on another machine: similarity comes from the file that the first call has left, or else a note is given."""
  first, (_, written) = next(iter(evaluated.items()))
  shutil.copytree(workdir, tmp_path / "moved")
  elsewhere = f"--config.data.data_dir={tmp_path / 'no_records'}"
  status, out, _ = run(capsys, "report", "--workdir", tmp_path / "moved", folders / first, "--json", elsewhere,
                       "--config.decode.search=mbr")
  output = json.loads(out)
  assert status == 0 and output["ood_threshold"] > 0
  assert output["search"] == "beam" and "beam search" in output["notes"][0]
  assert output["studies"][0]["report"] == written.text
  (tmp_path / "moved" / "ood.npz").write_bytes(b"damaged")
  status, out, _ = run(capsys, "report", "--workdir", tmp_path / "moved", folders / first, "--json", elsewhere)
  output = json.loads(out)
  assert status == 0 and output["ood_threshold"] is None and "ood.npz" in output["notes"][0]
  assert output["studies"][0]["report"] == written.text and output["studies"][0]["images"][0]["similarity"] is None


@pytest.mark.slow
def test_html_report_of_image_files(workdir, call, folders, tmp_path, capsys):
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, call.files / "photo.png",
                       "--html", tmp_path / "page.html")
  page = (tmp_path / "page.html").read_text()
  assert status == 0, err
  assert "not a medical device" in page and "phantom-val-000000/frontal.jpg" in page
  assert page.count("photo.png doesn't look like") == 1


@pytest.mark.parametrize("report,expected", [
    ("the heart is normal . no effusion or pneumothorax .", "The heart is normal. No effusion or pneumothorax."),
    ("", ""), ("lungs clear , heart normal", "Lungs clear, heart normal")])
def test_a_report_gets_capitals_and_punctuation(report, expected):
  assert report_text.capitalize_report(report) == expected
