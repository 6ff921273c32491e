"""Mutated files of others: each is read, or refused in one line; nothing hangs, takes gigabytes or writes elsewhere.

The default tests try a few hundred inputs per kind, `pytest -m slow` tries twenty thousand. Inputs that were once
handled wrongly are in tests/cases/workdir.
"""

import functools
import hashlib
import io
import json
import pathlib
import random
import struct
import zipfile

from etils import epath
import jax
import numpy as np
import pytest

from input_pipeline.tokenizer import load_tokenizer, SentencePieceTokenizer
from input_pipeline.wordpiece import read_vocabulary
from mcsam_jax import config as configs
from mcsam_jax.checkpoints import manifest
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import load_weights
from mcsam_jax.errors import printable, UserError
from mcsam_jax.evaluation.eval_files import _read_constants
from mcsam_jax.inference.ood import _load_detector
from mcsam_jax.memory_init.initial_memory import load_initial_memory
from mcsam_jax.pretrained.torch_file import read_state_dict
from tests.testing.foreign import fuzz
from tests.testing.foreign.small_workdir import make_workdir
from tests.testing.foreign.torch_files import legacy_file, Tensor, torch_names, zip_file

CASES = pathlib.Path(__file__).parents[1] / "cases" / "workdir"
COUNTS = pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lung", "##s"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return make_workdir(tmp_path_factory.mktemp("fuzz") / "run")


def make_torch_seeds() -> list[bytes]:
  with torch_names():
    state = {"conv.weight": Tensor(np.arange(12, dtype=np.float32), "0", 0, (3, 4), (4, 1), parameter=True),
             "conv.bias": Tensor(np.arange(12, dtype=np.float32), "0", 2, (3,), (1,)),
             "steps": Tensor(np.array([7]), "1", 0, (), ()), "note": "x", "best": np.float64(0.5)}
    contents = (state, {"epoch": 3, "state_dict": state})
    return [write(content) for write in (zip_file, legacy_file) for content in contents]


def mutate_torch(data: bytes, rng: random.Random) -> bytes:
  """Mutates a file, or in half of the cases only the pickle in a zip file, whose checksums stay right."""
  if not data.startswith(b"PK") or rng.random() < 0.5:
    return fuzz.mutate_bytes(data, rng)
  output = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(output, "w") as changed:
    for name in archive.namelist():
      content = archive.read(name)
      changed.writestr(name, fuzz.mutate_bytes(content, rng) if name.endswith(".pkl") else content)
  return output.getvalue()


def make_safetensors() -> bytes:
  header = json.dumps({"w": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]},
                       "b": {"dtype": "BF16", "shape": [2], "data_offsets": [12, 16]}}).encode()
  return struct.pack("<Q", len(header)) + header + bytes(range(16))


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
  if rng.random() < 0.5:
    return fuzz.mutate_bytes(data, rng)
  length, = struct.unpack("<Q", data[:8])
  header = json.dumps(fuzz.mutate_value(json.loads(data[8:8 + length]), rng)).encode()
  return struct.pack("<Q", len(header)) + header + data[8 + length:]


def mutate_npz(data: bytes, rng: random.Random) -> bytes:
  """Mutates the bytes of an archive, those of one array, or its metadata."""
  if rng.random() < 0.3:
    return fuzz.mutate_bytes(data, rng)
  output = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(output, "w") as changed:
    names = archive.namelist()
    mutated = rng.choice(names)
    for name in names:
      content = archive.read(name)
      if name == mutated and name == "meta.npy" and rng.random() < 0.7:
        array = io.BytesIO()
        meta = str(np.load(io.BytesIO(content)))
        np.save(array, np.array(fuzz.mutate_json(meta.encode(), rng).decode("utf-8", "replace")))
        content = array.getvalue()
      elif name == mutated and rng.random() < 0.6:
        content = fuzz.mutate_bytes(content[:128], rng) + content[128:]             # its header
      elif name == mutated and rng.random() < 0.5:
        array = np.load(io.BytesIO(content))
        odd = [np.zeros(3), np.array(["x"]), np.zeros(array.shape, complex), np.full(array.shape, np.nan, np.float32),
               np.zeros(array.shape, np.int64), np.zeros(array.shape[1:], array.dtype), np.zeros((0,) + array.shape)]
        buffer = io.BytesIO()
        np.save(buffer, rng.choice(odd))
        content = buffer.getvalue()
      elif name == mutated:
        content = fuzz.mutate_bytes(content, rng)
      changed.writestr(name, content)
  return output.getvalue()


def make_npz(**arrays) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


def open_config(path: pathlib.Path):
  configs.apply_overrides(configs.read_config(path, lambda line: None), ())


def make_manifest(folder: pathlib.Path) -> bytes:
  folder.mkdir(exist_ok=True)
  (folder / "data").write_bytes(b"x" * 100)
  manifest.write(epath.Path(folder), {"step": 7, "scores": {"CIDEr": 0.5}, "data_position": {"examples": 8}})
  return (folder / manifest.NAME).read_bytes()


def mutate_manifest(data: bytes, rng: random.Random) -> bytes:
  """Mutates a manifest; in half of the cases its digest is that of the mutated content."""
  mutated = fuzz.mutate_json(data, rng)
  try:
    return manifest._serialize(json.loads(mutated)).encode() if rng.random() < 0.5 else mutated
  except (ValueError, AttributeError, TypeError, RecursionError):
    return mutated


def open_manifest(path: pathlib.Path):
  problem = manifest.verify(epath.Path(path.parent))
  if problem:
    raise UserError(problem)
  manifest.read_metadata(epath.Path(path.parent))


def refuse_value_errors(load):
  """Runs `load`, whose caller makes a damaged file again after an OSError or a ValueError."""
  try:
    load()
  except (OSError, ValueError) as error:
    raise UserError(printable(str(error)) or "damaged") from error


def make_kind(kind: str, workdir: pathlib.Path, folder: pathlib.Path):
  """Returns (path, seeds, mutate, parse) of a kind of file; parse takes the path."""
  folder.mkdir(exist_ok=True)
  if kind == "torch":
    return folder / "model.pth", make_torch_seeds(), mutate_torch, lambda path: read_state_dict(str(path))
  if kind == "safetensors":
    pytest.importorskip("safetensors")
    return (folder / "model.safetensors", [make_safetensors()], mutate_safetensors,
            lambda path: read_state_dict(str(path)))
  if kind == "config":
    return folder / "config.json", [(workdir / "config.json").read_bytes()], fuzz.mutate_json, open_config
  if kind == "tokenizer":
    return (folder / "tokenizer.json", [(workdir / "tokenizer" / "tokenizer.json").read_bytes()], fuzz.mutate_json,
            lambda path: load_tokenizer(epath.Path(path.parent)).encode("the lungs are clear"))
  if kind == "encoder":
    shapes = jax.eval_shape(lambda: init_encoder_variables(configs.read_config(workdir / "config.json")))
    shapes = {"params": {"conv1": shapes["params"]["conv1"]}, "batch_stats": {"bn1": shapes["batch_stats"]["bn1"]}}
    with np.load(workdir / "encoder.npz") as file:
      arrays = {name: file[name] for name in file.files if "/conv1/" in name and "/layer" not in name
                or name.startswith("batch_stats/bn1/") or name == "meta"}
    seed = make_npz(**arrays)
    (folder / "encoder.npz").write_bytes(seed)
    load_weights(folder / "encoder.npz", shapes)
    return folder / "encoder.npz", [seed], mutate_npz, lambda path: load_weights(path, shapes)
  if kind == "memory":
    return (folder / "slots.npz", [(workdir / "memory_bank" / "slots.npz").read_bytes()], mutate_npz,
            lambda path: load_initial_memory(path.parent))
  if kind == "ood":
    seed = make_npz(reference=np.eye(4, 128, dtype=np.float16), threshold=np.float64(0.5), first_view=np.int64(1))
    return (folder / "ood.npz", [seed], mutate_npz,
            lambda path: refuse_value_errors(lambda: _load_detector(epath.Path(path), 128)))
  if kind == "manifest":
    return folder / "manifest.json", [make_manifest(folder)], mutate_manifest, open_manifest
  if kind == "constant":
    seed = json.dumps({"BLEU_4": {"report": "the lungs are clear .", "val_score": 0.5}, "METEOR": None}).encode()
    return (folder / "constant.json", [seed], fuzz.mutate_json,
            lambda path: _read_constants(epath.Path(path), ["BLEU_4", "METEOR"]))
  assert kind == "vocabulary"
  return folder / "vocab.json", [json.dumps(VOCABULARY).encode()], fuzz.mutate_json, read_vocabulary


KINDS = ("torch", "safetensors", "config", "tokenizer", "encoder", "memory", "ood", "manifest", "constant",
         "vocabulary")


@COUNTS
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind, count, workdir, tmp_path):
  path, seeds, mutate, parse = make_kind(kind, workdir, tmp_path / kind)
  for seed in seeds:
    path.write_bytes(seed)
    assert fuzz.check(functools.partial(parse, path)) is None           # the files themselves are read
  num_refused = fuzz.fuzz(path, seeds, mutate, functools.partial(parse, path), count)
  assert kind == "constant" or num_refused > count / 20


def test_files_that_were_once_handled_wrongly(workdir, tmp_path):
  """The name of a case is KIND-WHAT, KIND being one of KINDS."""
  cases = sorted(CASES.glob("*-*"))
  assert cases
  for case in cases:
    path, _, _, parse = make_kind(case.name.split("-")[0], workdir, tmp_path / case.name)
    path.write_bytes(case.read_bytes())
    assert fuzz.check(functools.partial(parse, path)) == "", case


@pytest.mark.parametrize("case", sorted((CASES.parent / "sentencepiece").iterdir()), ids=lambda case: case.stem)
def test_sentencepiece_models_that_were_once_handled_wrongly(case, tmp_path):
  model = case.read_bytes()
  (tmp_path / "sentencepiece.model").write_bytes(model)
  (tmp_path / "tokenizer.json").write_text(json.dumps({
      "kind": "sentencepiece", "cleaning": "iu_xray", "model_sha256": hashlib.sha256(model).hexdigest()}))
  assert fuzz.check(lambda: load_tokenizer(epath.Path(tmp_path))) == ""


@COUNTS
def test_mutated_sentencepiece_models_are_read_or_refused(count, tmp_path):
  reports = ["the lungs are clear .", "no pleural effusion or pneumothorax .", "the heart is normal in size ."]
  folder = tmp_path / "tokenizer"
  folder.mkdir()
  SentencePieceTokenizer.train(reports * 5, "iu_xray", 60).save(epath.Path(folder))
  model = (folder / "sentencepiece.model").read_bytes()

  def mutate(data: bytes, rng: random.Random) -> bytes:
    mutated = fuzz.mutate_bytes(data, rng)
    (folder / "sentencepiece.model").write_bytes(mutated)
    return json.dumps({"kind": "sentencepiece", "cleaning": "iu_xray",
                       "model_sha256": hashlib.sha256(mutated).hexdigest()}).encode()

  def parse():
    tokenizer = load_tokenizer(epath.Path(folder))
    tokenizer.get_vocabulary()
    tokenizer.decode(tokenizer.encode("the lungs are clear"))

  for number in range(count):
    rng = random.Random(number)
    (folder / "tokenizer.json").write_bytes(mutate(model, rng))
    problem = fuzz.check(parse)
    assert not problem, (number, problem)
