"""Reports of image files: those that evaluation writes of the same images, what is refused and warned of."""

import contextlib
import io
import json
import shutil
import types

import jax
import numpy as np
import PIL.Image
import pydicom
import pytest

from input_pipeline.batch import empty_batch
from input_pipeline.builder.prepare import prepare
from input_pipeline.pipeline import eval_batches
from mcsam_jax import cli
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.checkpoints.workdir import create_workdir, init_encoder_variables, open_workdir
from mcsam_jax.demo import write_films
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.evaluation import report as report_verb
from mcsam_jax.evaluation import report_text
from mcsam_jax.inference import ood
from mcsam_jax.inference.feature_cache import split_features
from mcsam_jax.inference.generate import ReportGenerator
from mcsam_jax.inference.load import load_member
from mcsam_jax.models.initialize import make_model
from mcsam_jax.training.train_state import init_train_state

TINY = {
    "data.phantom.num_train": 20, "data.phantom.num_val": 10, "data.phantom.num_test": 1, "data.image_size": 32,
    "data.short_side": 64, "encoder.name": "resnet_tiny", "encoder.frozen": True, "model.width": 16,
    "model.feedforward_width": 16, "model.num_heads": 2, "model.encoder_layers": 0, "model.decoder_layers": 1,
    "model.num_memory_tokens": 2, "memory.num_heads": 2, "memory.num_slots": 12, "memory.slot_width": 8, "memory.top_k": 3,
    "memory_init.kind": "random", "tokenizer.threshold": 1, "tokenizer.max_length": 12, "train.host_threads": 1,
    "decode.beam_size": 2, "decode.batch_size": 4, "prepare.num_workers": 1,
}
STEP = 7
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A workdir whose checkpoint has random weights, of which studies get different reports."""
  root = tmp_path_factory.mktemp("report")
  arguments = [f"--config.{field}={value}" for field, value in (
      TINY | {"data.data_dir": root / "data", "encoder.weights": root / "encoder.npz"}).items()]
  config = configs.load_config("phantom", arguments)
  save_weights(root / "encoder.npz", init_encoder_variables(config), {"pretraining_data": "none"})
  prepare(config, log=lambda line: None)
  work = create_workdir(str(root / "run"), config, log=lambda line: None)
  sample = empty_batch(config, 1, feature_shape=(4, 128))
  state = jax.jit(lambda: init_train_state(make_model(config, work.tokenizer.vocab_size, work.patch_grid), config, sample))()
  state.params["decoder"]["logits"]["kernel"] *= 20
  checkpoints = Checkpoints(work.path, 1)
  checkpoints.save(STEP, state, {})
  checkpoints.close()
  return work.path


@pytest.fixture(scope="module")
def evaluated(workdir):
  """What evaluation writes of the val split, by id, and the images that it sees."""
  work = open_workdir(workdir)
  split, mesh = work.open_split("val"), make_mesh(work.config)
  with jax.set_mesh(mesh):
    member = load_member(work, mesh, split, None, lambda line: None)
    features = split_features(work, split, lambda line: None)
    written = ReportGenerator([member.model], work.config, work.tokenizer, mesh, "beam")(
        [member.variables], eval_batches(split, work.tokenizer, work.config, 4, features))
  assert len({report.text for report in written}) > 3
  return {split.ids[report.record]: (split[report.record], report) for report in written}


@pytest.fixture(scope="module")
def folders(evaluated, tmp_path_factory):
  """The images of each val study in a folder of its own, which is named like the study."""
  root = tmp_path_factory.mktemp("images")
  for name, (record, _) in evaluated.items():
    write_films(record, root / name)
  return root


def run(capsys, *argv):
  """Returns status, stdout and stderr of `mcsam`."""
  status = cli.main(list(map(str, argv)))
  output = capsys.readouterr()
  return status, output.out, output.err


def as_dicom(jpeg, path, **fields):
  """Writes the very pixels of a grayscale JPEG as a DICOM file."""
  with PIL.Image.open(jpeg) as image:
    pixels = np.asarray(image.convert("L"))
  file = pydicom.Dataset()
  file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, pydicom.uid.generate_uid()
  file.PatientName, file.PatientID, file.Modality, file.StudyInstanceUID = "Doe^Jane", "MRN0042", "DX", "1.2.3"
  file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
  file.BitsAllocated = file.BitsStored = 8
  file.HighBit, file.PixelRepresentation, file.PixelData = 7, 0, pixels.tobytes()
  for name, value in fields.items():
    setattr(file, name, value)
  file.file_meta = pydicom.dataset.FileMetaDataset()
  file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  file.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def told(workdir, folders, tmp_path_factory):
  """What one call says of all folders, two DICOM films of a study and one of another kind, a photo and a cut file.

  Returns the folder of the last four, the object of --json, the status, both outputs, and the model that was loaded.
  """
  own = tmp_path_factory.mktemp("own")
  two_views = next(folder for folder in sorted(folders.iterdir()) if len(list(folder.iterdir())) == 2)
  for number, (view, position) in enumerate([("lateral", "LL"), ("frontal", "PA")]):
    as_dicom(two_views / f"{view}.jpg", own / f"IM{number}", ViewPosition=position)
  as_dicom(two_views / "frontal.jpg", own / "IM2", Modality="MR", StudyInstanceUID="1.2.4")
  noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
  PIL.Image.fromarray(noise).save(own / "photo.png")
  (own / "cut.png").write_bytes((own / "photo.png").read_bytes()[:9000])
  models, made = [], report_verb.Predictor.__init__
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report_verb.Predictor, "__init__",
                  lambda self, *given: (models.append(self), made(self, *given))[0])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      status = cli.main(["report", "--workdir", str(workdir), str(folders), *map(str, sorted(own.iterdir())), "--json",
                         "--config.eval.explain=true"])
  return types.SimpleNamespace(own=own, two_views=two_views.name, said=json.loads(out.getvalue()), status=status,
                               out=out.getvalue(), err=err.getvalue(), model=models[0])


def test_files_get_the_reports_that_evaluation_writes(told, evaluated, folders):
  assert told.said["step"] == STEP and told.said["search"] == "beam" and told.said["notice"] == report_text.NOTICE
  for study, (name, (record, written)) in zip(told.said["studies"], evaluated.items()):    # 10
    assert [image["file"] for image in study["images"]] == [f"{folders}/{name}/{view}.jpg" for view in record["views"]]
    assert study["report"] == written.text
    assert study["log_prob"] == pytest.approx(written.log_prob, abs=2e-3)
  assert sum(bool(study["warnings"]) for study in told.said["studies"][:10]) <= 1    # themselves of val


def test_dicom_films_get_the_report_of_their_pixels_and_tell_no_name(told, evaluated):
  study = told.said["studies"][10]
  assert [(image["file"], image["view"], image["view_told_by"]) for image in study["images"]] == [
      (f"{told.own}/IM1", "frontal", "header"), (f"{told.own}/IM0", "lateral", "header")]
  assert study["report"] == evaluated[told.two_views][1].text
  for secret in ("Doe", "MRN", "1.2.3", "1.2.4"):
    assert secret not in told.out + told.err


def test_a_photograph_gets_a_report_with_a_warning(told):
  study, = told.said["studies"][11:]
  assert study["images"][0]["file"] == f"{told.own}/photo.png" and study["report"]
  colour, unfamiliar = study["warnings"]
  assert "photo.png is in color" in colour and "photo.png doesn't look like a chest X-ray" in unfamiliar
  assert study["images"][0]["likeness"] < told.said["usual_likeness"]


def test_what_cannot_be_read_is_refused_and_the_rest_gets_its_report(told):
  assert told.status == 2 and "2 file(s) can't be read, see above; 12 report(s) written" in told.err
  assert sorted(refused["file"] for refused in told.said["refused"]) == [f"{told.own}/IM2", f"{told.own}/cut.png"]
  assert f"refused {told.own}/IM2: the header says magnetic resonance" in told.err
  assert f"refused {told.own}/cut.png: the image can't be decoded: image file is truncated" in told.err


def test_one_program_for_any_number_of_studies(told):
  assert told.model._generate._search_fn._cache_size() == told.model._encode._cache_size() == 1


def test_nothing_to_write_about(workdir, told, folders, tmp_path, capsys):
  status, out, err = run(capsys, "report", "--workdir", workdir, told.own / "cut.png", "--json")
  assert status == 2 and "0 report(s) written" in err and "loaded" not in err and json.loads(out)["studies"] == []
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "notes.txt").write_text("")
  status, out, err = run(capsys, "report", "--workdir", workdir, tmp_path / "empty")
  assert status == 2 and not out and f"no image in {tmp_path / 'empty'} (1 other files)" in err
  status, out, err = run(capsys, "report", "--workdir", workdir, tmp_path / "empty", told.own / "cut.png",
                         "--out", tmp_path / "none.txt")
  assert status == 2 and not out and not (tmp_path / "none.txt").exists()
  assert f"refused {tmp_path / 'empty'}: no image in this folder" in err and "2 file(s) can't be read" in err
  status, _, err = run(capsys, "report", "--workdir", workdir, told.own / "photo.png", "--page", "x.txt")
  assert status == 2 and "--page x.txt: it is a page for a browser, name it .html" in err
  status, _, err = run(capsys, "report", "--workdir", tmp_path, told.own / "photo.png")
  assert status == 2 and "is this a workdir" in err
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, "--config.model.width=8")
  assert status == 2 and "--config.model.width" in err
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, "--step", 99)
  assert status == 2 and "99" in err


def test_text_is_for_people(told):
  study = told.said["studies"][11] | {"report": "the heart is normal . no effusion ."}
  text = report_text.of_study(study, 3)
  title, *warnings, written, log_prob = text.splitlines()
  assert title == f"[3] {told.own}/photo.png (frontal, told by order)" and "log-probability" in log_prob
  assert len(warnings) == 2 and all(line.startswith("    warning: ") for line in warnings)
  assert written == "    The heart is normal. No effusion."
  whole = report_text.of_all(told.said, with_studies=True)
  assert whole.count("log-probability") == 12 and whole.endswith(report_text.NOTICE) and whole.count("refused ") == 2


def test_json_tells_why_in_numbers(told, workdir):
  ids = set(open_workdir(workdir).open_split("train").ids)
  for study in told.said["studies"]:
    why = study["why"]
    assert " ".join(why["words"]) == study["report"] and len(why["log_probs"]) == len(why["words"])
    assert study["log_prob"] - 1e-3 <= sum(why["log_probs"]) + 1e-3 and max(why["log_probs"]) <= 0
    assert sum(slot["weight"] for slot in why["slots"]) == pytest.approx(1, abs=1e-3)        # of 12, all are told
    assert len(why["neighbours"]) == 3 and {near["id"] for near in why["neighbours"]} <= ids


@pytest.mark.slow
def test_text_json_and_out_say_the_same(workdir, evaluated, folders, tmp_path, capsys):
  first, (_, written) = next(iter(evaluated.items()))
  status, out, err = run(capsys, "report", "--workdir", workdir, folders / first)
  assert status == 0 and report_text.readable(written.text) in " ".join(out.split())
  assert report_text.NOTICE in out and "loaded step" in err and "loaded step" not in out
  status, out, _ = run(capsys, "report", "--workdir", workdir, folders / first, "--out", tmp_path / "r.json", "--json")
  assert status == 0 and not out
  assert json.loads((tmp_path / "r.json").read_text())["studies"][0]["report"] == written.text


@pytest.mark.slow
def test_without_the_records_a_workdir_is_enough(workdir, told, evaluated, folders, tmp_path, capsys):
  """As on another machine: what the first call has kept tells what is familiar; without that a note says so."""
  first, (_, written) = next(iter(evaluated.items()))
  shutil.copytree(workdir, tmp_path / "moved")
  elsewhere = f"--config.data.data_dir={tmp_path / 'no_records'}"
  status, out, _ = run(capsys, "report", "--workdir", tmp_path / "moved", folders / first, "--json", elsewhere,
                       "--config.decode.search=mbr")
  said = json.loads(out)
  assert status == 0 and said["usual_likeness"] > 0
  assert said["search"] == "beam" and "by beam search" in said["notes"][0]
  assert said["studies"][0]["report"] == written.text
  (tmp_path / "moved" / "familiar.npz").write_bytes(b"damaged")
  status, out, _ = run(capsys, "report", "--workdir", tmp_path / "moved", folders / first, "--json", elsewhere)
  said = json.loads(out)
  assert status == 0 and said["usual_likeness"] is None and "familiar.npz" in said["notes"][0]
  assert said["studies"][0]["report"] == written.text and said["studies"][0]["images"][0]["likeness"] is None


@pytest.mark.slow
def test_a_page_of_own_images(workdir, told, folders, tmp_path, capsys):
  status, _, err = run(capsys, "report", "--workdir", workdir, folders, told.own / "photo.png",
                       "--page", tmp_path / "page.html")
  page = (tmp_path / "page.html").read_text()
  assert status == 0, err
  assert "no medical device" in page and "phantom-val-000000/frontal.jpg" in page
  assert page.count("photo.png doesn't look like a chest X-ray") == 1


def test_familiar_is_what_nearly_all_val_images_reach():
  """Train and val lie around one direction, at angles that are known."""
  rng = np.random.default_rng(0)
  around = lambda count, spread: np.eye(64)[0] + spread * rng.normal(size=(count, 64)) / 8
  known = ood.learn(around(400, 0.5), around(2000, 0.5))
  assert (known.similarity(around(2000, 0.5)) < known.usual).mean() < 0.02
  assert np.all(known.similarity(np.eye(64)[1:]) < known.usual)                # at right angles to all
  assert np.all(known.similarity(5 * known.reference[:3].astype(np.float32)) > known.usual)      # lengths don't count
  np.testing.assert_allclose(ood.learn(np.eye(3), np.eye(3)[:1]).similarity(np.eye(3)[:1]), [1 / 3], atol=1e-6)


@pytest.mark.parametrize("report,expected", [
    ("the heart is normal . no effusion or pneumothorax .", "The heart is normal. No effusion or pneumothorax."),
    ("", ""), ("lungs clear , heart normal", "Lungs clear, heart normal")])
def test_readable(report, expected):
  assert report_text.readable(report) == expected
