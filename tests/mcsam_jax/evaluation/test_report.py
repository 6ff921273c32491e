"""`mcsam report`: the same reports as `mcsam evaluate` for the same images, errors and warnings about files."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import types

import numpy as np
import PIL.Image
import pytest

from mcsam_jax import cli
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.demo.demo import write_image_files
from mcsam_jax.evaluation import report as report_verb
from mcsam_jax.evaluation import report_text
from mcsam_jax.evaluation.evaluate import evaluate
from tests.testing.foreign.dicom_file import write_dicom
from tests.testing.tiny_workdir import generate_as_evaluate, STEP


@pytest.fixture(scope="module")
def evaluated(workdir):
  """Returns study id -> (record, report that `mcsam evaluate` generates) of the val split."""
  work = open_workdir(workdir)
  split = work.open_split("val")
  reports = generate_as_evaluate(work, split)
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
                         "--json", "--config.eval.explain=true", "--nbest", "2"])
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
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, "--nbest", 3)
  assert status == 2 and "decode.beam_size" in err
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, "--step", 99)
  assert status == 2 and "99" in err


def test_text_shows_studies_notes_and_unreadable_files(call):
  study = call.json["studies"][11] | {"report": "the heart is normal . no effusion .", "nbest": []}
  title, *warnings, report, log_prob = report_text.format_study(study, 3).splitlines()
  assert title == f"[3] {call.files}/photo.png (frontal, guessed from the order)" and "log-probability" in log_prob
  assert len(warnings) == 2 and all(line.startswith("    warning: ") for line in warnings)
  assert report == "    The heart is normal. No effusion."
  text = report_text.format_output(call.json, with_studies=True)
  assert text.count("log-probability") == 2 * 12 and text.endswith(report_text.NOTICE)
  assert text.count(str(call.files / "IM2")) == text.count(str(call.files / "cut.png")) == 1


def test_nbest_lists_different_reports_and_begins_with_the_report(call):
  for study in call.json["studies"]:
    first, second = study["nbest"]
    assert first == {"report": study["report"], "log_prob": study["log_prob"]} and second != first
    lines = report_text.format_study(study, 1).splitlines()
    assert sum("log-probability" in line for line in lines) == 2
    assert any(line.startswith("    2. ") for line in lines)


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
def test_a_split_of_one_study_is_evaluated(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / "run")
  scores = evaluate(str(tmp_path / "run"), "test", None, [], [], log=lambda line: None)
  assert scores["num_studies"] == 1 and scores["controls"] == {"shuffled_images": None}
  assert scores["nlg"]["clean"]["CIDEr"] == 0 and 0 <= scores["nlg"]["clean"]["BLEU_1"] <= 1
  assert {"shuffled_images", "intervals"} <= scores["notes"].keys()
  assert (tmp_path / "run" / "eval" / f"test-{STEP}.html").exists()


@pytest.mark.slow
def test_html_report_of_image_files(workdir, call, folders, tmp_path, capsys):
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, call.files / "photo.png",
                       "--html", tmp_path / "page.html")
  page = (tmp_path / "page.html").read_text()
  assert status == 0, err
  assert "not a medical device" in page and "phantom-val-000000/frontal.jpg" in page
  assert page.count("photo.png doesn't look like") == 1


@pytest.fixture
def home(folders, tmp_path):
  """Returns a folder with films that are named like a page's own images or like its output, and a link to one."""
  film = next(next(folders.iterdir()).iterdir())
  for name in ("page_images/1-1.jpg", "page_images/1-2.jpg", "film.html", "film.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(film, tmp_path / name)
  (tmp_path / "link.html").symlink_to(tmp_path / "film.html")
  return tmp_path


def read_files(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_film_is_no_output_file(workdir, home, capsys):
  before = read_files(home)
  for option, name in (("--out", "film.txt"), ("--html", "film.html"), ("--html", "link.html"), ("--out", "")):
    status, _, err = run(capsys, "report", "--workdir", workdir, home / "page_images", option, home / name)
    assert status == 2 and option in err and str(home / name) in err and err.count("\n") == 1
  assert read_files(home) == before and (home / "link.html").is_symlink()


@pytest.mark.slow
def test_no_file_of_the_user_is_changed(workdir, home, capsys):
  before = read_files(home)
  for _ in range(2):                                                     # the second call replaces what the first wrote
    status, _, err = run(capsys, "report", "--workdir", workdir, home / "page_images", "--out", home / "new.txt",
                         "--html", home / "page.html")
    assert status == 0, err
  after = read_files(home)
  assert after.keys() - before.keys() == {home / "new.txt", home / "page.html"}
  assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("report,expected", [
    ("the heart is normal . no effusion or pneumothorax .", "The heart is normal. No effusion or pneumothorax."),
    ("", ""), ("lungs clear , heart normal", "Lungs clear, heart normal")])
def test_a_report_gets_capitals_and_punctuation(report, expected):
  assert report_text.capitalize_report(report) == expected
