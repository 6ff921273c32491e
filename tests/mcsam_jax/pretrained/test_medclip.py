"""MedCLIP's ResNet becomes an image encoder and its BERT's word embeddings word vectors."""

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
  """A file with MedCLIP's names: its `fc` is a projection, BERT stands behind it."""
  shapes = json.loads((PARITY / "resnet50_keys.json").read_text())
  tensors = {f"vision_model.model.{name}": np.full(shape, 0.25, np.float32) for name, shape in shapes.items()}
  tensors["vision_model.model.fc.weight"] = np.zeros((512, 2048), np.float32)
  tensors["text_model.model.embeddings.word_embeddings.weight"] = np.arange(24, dtype=np.float32).reshape(6, 4)
  tensors["text_model.projection_head.weight"] = np.zeros((512, 768), np.float32)
  tensors["logit_scale"] = np.zeros((), np.float32)
  path = tmp_path / "medclip.safetensors"
  safetensors.numpy.save_file(tensors, path)
  return path


def test_the_image_encoder(checkpoint, tmp_path, capsys):
  target = tmp_path / "medclip.npz"
  assert cli.main(["import-weights", "encoder", str(checkpoint), str(target)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "used        vision_model.model.conv1.weight -> params/conv1/kernel" in lines
  assert "unused      text_model.projection_head.weight" in lines and "unused      vision_model.model.fc.weight" in lines
  expected = jax.eval_shape(make_encoder("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  variables, meta = load_weights(str(target), expected)
  assert {float(leaf.min()) for leaf in jax.tree.leaves(variables)} == {0.25}
  assert meta["pretraining_data"] == "MedCLIP's"


def test_word_vectors(checkpoint, tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  target = tmp_path / "words.npz"
  assert cli.main(["import-weights", "word-vectors", str(checkpoint), str(target), "--vocabulary", str(tmp_path / "vocab.txt")]) == 0
  found = make_word_vectors(["effusion clear lungs"] * 2 + ["clear"] * 2 + ["effusion", "nothing"] * 2 + ["lungs"], str(target), 4)
  assert set(found.words) == {"effusion", "lungs", "clear"}
  rows = {word: np.arange(24).reshape(6, 4)[PIECES.index(word)] for word in found.words}
  for word, vector in zip(found.words, found.vectors):
    np.testing.assert_allclose(vector, rows[word] / np.linalg.norm(rows[word]), rtol=1e-6)


def test_a_vocabulary_of_another_model_is_refused(checkpoint, tmp_path, capsys):
  (tmp_path / "vocab.txt").write_text("lungs\n")
  target = tmp_path / "words.npz"
  assert cli.main(["import-weights", "word-vectors", str(checkpoint), str(target), "--vocabulary", str(tmp_path / "vocab.txt")]) == 2
  assert "has 1 lines" in capsys.readouterr().err and not target.exists()
