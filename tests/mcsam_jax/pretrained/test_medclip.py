"""MedCLIP's ResNet is imported as image encoder, and the word embeddings of its BERT as word vectors."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mcsam_jax import cli
from mcsam_jax.checkpoints.weights import load_weights
from mcsam_jax.memory_init.word_vectors import make_word_vectors
from mcsam_jax.models.visual_encoders.registry import make_encoder

PARITY = pathlib.Path(__file__).parents[2] / "parity"
PIECES = ["[PAD]", "[CLS]", "effusion", "##tion", "lungs", "clear"]


@pytest.fixture
def checkpoint(tmp_path):
  """Returns a checkpoint with the names and shapes of MedCLIP, whose `fc` is a projection."""
  shapes = json.loads((PARITY / "resnet50_keys.json").read_text())
  tensors: dict[str, np.ndarray] = {
      f"vision_model.model.{name}": np.full(shape, 0.25, np.float32) for name, shape in shapes.items()}
  tensors["vision_model.model.fc.weight"] = np.zeros((512, 2048), np.float32)
  tensors["text_model.model.embeddings.word_embeddings.weight"] = np.arange(24, dtype=np.float32).reshape(6, 4)
  tensors["text_model.projection_head.weight"] = np.zeros((512, 768), np.float32)
  tensors["logit_scale"] = np.zeros((), np.float32)
  path = tmp_path / "medclip.safetensors"
  safetensors.numpy.save_file(tensors, path)
  return path


def test_image_encoder(checkpoint, tmp_path, capsys):
  target = tmp_path / "medclip.npz"
  assert cli.main(["import-weights", "encoder", str(checkpoint), str(target)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "converted   vision_model.model.conv1.weight -> params/conv1/kernel" in lines
  assert "ignored     text_model.projection_head.weight" in lines
  assert "ignored     vision_model.model.fc.weight" in lines
  expected = jax.eval_shape(make_encoder("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  variables, meta = load_weights(str(target), expected)
  assert {float(leaf.min()) for leaf in jax.tree.leaves(variables)} == {0.25}
  assert meta["pretraining_data"] == "MedCLIP's"


def import_word_vectors_from(checkpoint, target, vocabulary):
  return cli.main(["import-weights", "word-vectors", str(checkpoint), str(target), "--vocabulary", str(vocabulary)])


def test_word_vectors(checkpoint, tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  target = tmp_path / "words.npz"
  assert import_word_vectors_from(checkpoint, target, tmp_path / "vocab.txt") == 0
  reports = ["effusion clear lungs"] * 2 + ["clear"] * 2 + ["effusion", "nothing"] * 2 + ["lungs"]
  vectors = make_word_vectors(reports, str(target), 4)
  assert set(vectors.words) == {"effusion", "lungs", "clear"}
  rows = {word: np.arange(24).reshape(6, 4)[PIECES.index(word)] for word in vectors.words}
  for word, vector in zip(vectors.words, vectors.vectors):
    np.testing.assert_allclose(vector, rows[word] / np.linalg.norm(rows[word]), rtol=1e-6)


def test_vocabulary_of_another_model_is_refused(checkpoint, tmp_path, capsys):
  (tmp_path / "vocab.txt").write_text("lungs\n")
  target = tmp_path / "words.npz"
  assert import_word_vectors_from(checkpoint, target, tmp_path / "vocab.txt") == 2
  error = capsys.readouterr().err
  assert "vocab.txt" in error and "medclip.safetensors" in error and not target.exists()
