"""A workdir that somebody sent: each damaged file is one line that names the file and the field."""

import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.tokenizer import load_tokenizer
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import load_weights
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.config import read_config
from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.initial_memory import load_initial_memory
from tests.testing.foreign.irregular import KINDS, replace_by_irregular
from tests.testing.foreign.memory import limited_memory
from tests.testing.foreign.small_workdir import make_workdir

DEEP = "[" * 3000
MUTATED = pathlib.Path(__file__).parents[2] / "cases" / "mutated"
open_tokenizer = lambda workdir: load_tokenizer(workdir / "tokenizer")
open_memory = lambda workdir: load_initial_memory(workdir / "memory_bank")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  return make_workdir(tmp_path_factory.mktemp("original") / "run")


@pytest.fixture
def workdir(original, tmp_path):
  return pathlib.Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture(scope="module")
def load_encoder(original):
  """Reads the encoder of a workdir as `open_workdir` does."""
  shapes = jax.eval_shape(lambda: init_encoder_variables(read_config(original / "config.json")))
  return lambda workdir: load_weights(workdir / "encoder.npz", shapes)


def assert_refused(open_part, path, named=""):
  """Asserts that the workdir of `path` is refused by a line that names `path` and `named`."""
  workdir = next(folder for folder in path.parents if folder.name == "run")
  with limited_memory(2 ** 30), pytest.raises(UserError) as error:
    open_part(workdir)
  message = str(error.value)
  assert message.isprintable() and str(path) in message and named in message


def change_json(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_the_workdir_itself_is_opened(workdir):
  opened = open_workdir(workdir)
  assert opened.tokenizer.get_vocabulary()[4:] == [".", "are", "clear", "effusion", "lungs", "no", "the"]
  assert opened.initial_memory.slots.shape == (12, 8) and "params" in opened.encoder_variables


@pytest.mark.parametrize("data", [
    b"\xff\xfe{}", b"[1, 2]", b"null", b'"text"', DEEP.encode(), b'{"a":' * 3000, b"", b"{", b'{"mcsam_jax_version": 1']
)
def test_a_config_that_is_no_object(workdir, data):
  (workdir / "config.json").write_bytes(data)
  assert_refused(open_workdir, workdir / "config.json")


@pytest.mark.parametrize("section, field, value", [
    ("model", None, 3), ("model", None, None), ("data", None, "x"), ("model", None, []), ("data", "phantom", 1),
    ("model", "width", "16"), ("model", "width", 16.5), ("model", "width", None), ("model", "width", [16]),
    ("model", "width", True), ("model", "width", {}), ("model", "use_memory", 1), ("model", "norm", "x"),
    ("model", "width", 10 ** 30), ("model", "dropout", 10 ** 400), ("model", "width", 2 ** 40),
    ("model", "dropout", None),
    (None, "seed", 2 ** 63), (None, "seed", 2 ** 63 - 1), (None, "seed", -1), ("eval", "seed", 2 ** 64),
    ("data", "name", "x\x00y"), ("data", "data_dir", "a\ud800"), ("data", "data_dir", "\x1b[2J"),
    ("encoder", "name", "resnet50\n"), (None, "x\x1b[2J", 1), (None, "data.name", "phantom"), ("model", "a.b", 1),
    ("optimizer", "clip_norm", float("nan")), ("optimizer", "clip_norm", float("inf"))])
def test_a_field_of_another_type_or_range(workdir, section, field, value):
  def change(content):
    target = content[section] if section and field else content
    target[field or section] = value
  change_json(workdir / "config.json", change)
  named = (field or section).split(".")[0].split("\x1b")[0]
  assert_refused(open_workdir, workdir / "config.json", "" if value == "a\ud800" else named)


@pytest.mark.parametrize("change, field", [
    (lambda content: content.update(kind="x"), "kind"), (lambda content: content.update(kind=[]), "kind"),
    (lambda content: content.pop("kind"), "kind"), (lambda content: content.update(cleaning="x"), "cleaning"),
    (lambda content: content.update(cleaning=["iu_xray"]), "cleaning"),
    (lambda content: content.update(words="the lungs"), "words"),
    (lambda content: content.update(words={"the": 1}), "words"),
    (lambda content: content.update(words=["the", 3]), "words"),
    (lambda content: content.update(words=["the", None]), "words"),
    (lambda content: content.update(words=["the", "the"]), "words"),
    (lambda content: content.update(words=["the", "two words"]), "words"),
    (lambda content: content.update(words=["the", ""]), "words"),
    (lambda content: content.update(words=["<pad>", "the"]), "words"),
    (lambda content: content.update(shared_special_ids="no"), "shared_special_ids"),
    (lambda content: content.update(shared_special_ids=True), "words"),
    (lambda content: content.update(kind="sentencepiece"), "model_sha256"),
    (lambda content: content.update(kind="sentencepiece", model_sha256=[]), "model_sha256")])
def test_fields_of_a_tokenizer(workdir, change, field):
  change_json(workdir / "tokenizer" / "tokenizer.json", change)
  assert_refused(open_tokenizer, workdir / "tokenizer" / "tokenizer.json", field)


def test_mutated_tokenizers_are_refused_or_read(workdir):
  """Single bytes of a tokenizer.json were changed at random; a changed word is still a word."""
  for path in sorted(MUTATED.glob("tokenizer_*.json")):
    shutil.copy(path, workdir / "tokenizer" / "tokenizer.json")
    try:
      load_tokenizer(workdir / "tokenizer")
    except UserError as error:
      assert str(workdir / "tokenizer" / "tokenizer.json") in str(error) and "\n" not in str(error)


def test_a_sentencepiece_model_of_random_bytes(workdir):
  for model in (b"", b"\x00" * 40, bytes(range(256))):
    (workdir / "tokenizer" / "sentencepiece.model").write_bytes(model)
    (workdir / "tokenizer" / "tokenizer.json").write_text(json.dumps(
        {"kind": "sentencepiece", "cleaning": "iu_xray", "model_sha256": hashlib.sha256(model).hexdigest()}))
    assert_refused(open_tokenizer, workdir / "tokenizer" / "sentencepiece.model")


def read_arrays(path):
  with np.load(path) as file:
    return dict(file)


KERNEL = "params/conv1/kernel"


@pytest.mark.parametrize("change, named", [
    (lambda arrays: arrays.update(meta=np.array("[1]")), "meta"),
    (lambda arrays: arrays.update(meta=np.array('"text"')), "meta"),
    (lambda arrays: arrays.update(meta=np.array("null")), "meta"),
    (lambda arrays: arrays.update(meta=np.array('{"a":' * 1000)), "nested"),
    (lambda arrays: arrays.update(meta=np.array('{"pretraining_data": [1]}')), "pretraining_data"),
    (lambda arrays: arrays.update(meta=np.zeros(3)), "meta"), (lambda arrays: arrays.pop("meta"), "meta"),
    (lambda arrays: arrays.update({KERNEL: np.full(arrays[KERNEL].shape, "x")}), KERNEL),
    (lambda arrays: arrays.update({KERNEL: arrays[KERNEL] * np.nan}), KERNEL),
    (lambda arrays: arrays.update({KERNEL: arrays[KERNEL] * np.inf}), KERNEL),
    (lambda arrays: arrays.update({KERNEL: arrays[KERNEL] + 1j}), KERNEL),
    (lambda arrays: arrays.update({KERNEL: arrays[KERNEL].astype(int)}), KERNEL),
    (lambda arrays: arrays.update({KERNEL: arrays[KERNEL][:1]}), KERNEL),
    (lambda arrays: arrays.pop(KERNEL), KERNEL),
    (lambda arrays: arrays.update({"x\x1b[2J": np.zeros(3)}), "unexpected")])
def test_arrays_of_the_encoder(workdir, load_encoder, change, named):
  path = workdir / "encoder.npz"
  arrays = read_arrays(path)
  assert KERNEL in arrays
  change(arrays)
  np.savez(path, **arrays)
  assert_refused(load_encoder, path, named)


def test_a_plain_array_instead_of_the_encoder(workdir, load_encoder):
  with open(workdir / "encoder.npz", "wb") as file:
    np.save(file, np.zeros(3))
  assert_refused(load_encoder, workdir / "encoder.npz")


@pytest.mark.parametrize("name, value", [
    ("slots", np.zeros((3, 8), np.float32)), ("slots", np.full((12, 8), np.nan, np.float32)), ("slots", np.zeros(3)),
    ("slots", np.full((12, 8), "x")), ("slots", np.zeros((12, 8), complex)), ("slot_words", np.zeros((12, 10))),
    ("slot_topics", np.full(12, 3, np.int32)), ("slot_topics", np.full(12, -1, np.int32)), ("kind", np.zeros(2)),
    ("npmi", np.zeros((2, 2), np.float32)), ("topic_cosines", np.full((3, 10), np.inf, np.float32))])
def test_arrays_of_the_memory_bank(workdir, name, value):
  path = workdir / "memory_bank" / "slots.npz"
  np.savez(path, **read_arrays(path) | {name: value})
  assert_refused(open_memory if value.shape != (3, 8) else open_workdir, path)


@pytest.mark.parametrize("name", ["config.json", "encoder.npz", "memory_bank/slots.npz", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read(workdir, name, kind):
  path = workdir / name
  replace_by_irregular(path, kind)
  assert_refused(open_workdir, path)
