"""Weights of DINOv2 from the files of `transformers`, old and new names, at any image size."""

import functools

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from mcsam_jax.checkpoints.encoder_weights import load_encoder_weights
from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders import registry
from mcsam_jax.models.visual_encoders.dinov2 import DinoV2
from mcsam_jax.pretrained import dinov2, image_encoder
from mcsam_jax.pretrained.image_encoder import import_image_encoder
from tests.testing.parity import draw_state_dict, PARITY, read_json, relative_error

PUBLISHED = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
             "o_proj": "output.dense"}
BASE = {dinov2.POSITIONS: np.zeros((1, 1370, 768), np.float32)}


@pytest.fixture
def tiny(monkeypatch):
  """Registers the parity file's small network as the encoder dinov2_tiny, and returns its tensors."""
  sizes = read_json("dinov2.json")["config"]
  make = functools.partial(DinoV2, sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"])
  monkeypatch.setitem(registry.ENCODERS, "dinov2_tiny", registry._dinov2(make, 48, *registry.IMAGENET))
  return draw_state_dict(read_json("dinov2.json")["keys"])


def rename(name):
  """Returns a name as the published files have it."""
  for new, old in PUBLISHED.items():
    name = name.replace(f"attention.{new}.", f"attention.{old}.")
  return name


@pytest.mark.parametrize("image_size", [70, 112])
def test_a_published_file_gives_the_features_of_transformers(tmp_path, tiny, image_size):
  safetensors = pytest.importorskip("safetensors.numpy")
  path, target = tmp_path / "model.safetensors", tmp_path / "w.npz"
  safetensors.save_file({f"dinov2.{rename(name)}": tensor for name, tensor in tiny.items()}
                        | {"classifier.weight": np.zeros((2, 96), np.float32)}, path)
  report = import_image_encoder(str(path), str(target), log=lambda line: None)
  assert report.architecture == "dinov2_tiny" and len(report.ignored) == 2      # mask token, classifier
  config = ConfigDict({"seed": 0, "encoder": {"name": "dinov2_tiny"}, "data": {"image_size": image_size}})
  variables, _ = load_encoder_weights(target, config)
  images = np.random.RandomState(image_size).random_sample((2, 3, image_size, image_size)) * 2 - 1
  apply = jax.jit(registry.make_encoder("dinov2_tiny").apply)
  features = np.asarray(apply(variables, images.astype(np.float32).transpose(0, 2, 3, 1)))
  reference = np.load(PARITY / "dinov2_small.npz")[f"tokens_{image_size}"][:, 1:]
  assert relative_error(features.reshape(reference.shape), reference) < 1e-4


def test_new_names_and_bin_files_are_read_as_well(tmp_path, tiny, monkeypatch):
  (tmp_path / "pytorch_model.bin").write_bytes(b"a checkpoint")
  monkeypatch.setattr(image_encoder, "read_state_dict", lambda path, log: tiny)
  report = import_image_encoder(str(tmp_path / "pytorch_model.bin"), str(tmp_path / "w.npz"), log=lambda line: None)
  assert report.is_complete and ("encoder.layer.2.attention.q_proj.weight",
                                 "params/layer_2/query/kernel") in report.converted


def test_the_names_of_the_base_model_fit_rad_dino():
  keys = read_json("dinov2.json")["base_keys"]
  shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in keys.items()}
  size = dinov2.find_image_size(shapes, "file")
  assert size == 224
  expected = image_encoder.torch_names.get_encoder_shapes("rad_dino", size)
  found = {dinov2.to_flax_name(name, tensor.ndim) for name, tensor in shapes.items() if not dinov2.is_ignored(name)}
  assert found == set(expected) and expected["params/position_embeddings"] == (1, 257, 768)


def test_base_models_have_to_be_named_because_they_differ_in_normalization():
  with pytest.raises(UserError, match="model.bin.*dinov2_base or of rad_dino.*--architecture"):
    dinov2.detect_architecture(BASE, "model.bin")
  assert image_encoder.match_architecture(BASE, "model.bin", "rad_dino")[0] == "rad_dino"
  with pytest.raises(UserError, match="width 1024.*rad_dino .768"):
    dinov2.detect_architecture({dinov2.POSITIONS: np.zeros((1, 5, 1024))}, "file")
  with pytest.raises(UserError, match=r"file.*position_embeddings.*\[1, 1369, 768\]"):
    dinov2.find_image_size({dinov2.POSITIONS: np.zeros((1, 1369, 768))}, "file")
  with pytest.raises(UserError, match="--architecture vgg.*densenet121"):
    import_image_encoder("model.bin", "w.npz", architecture="vgg")


def test_tensors_of_other_networks_are_unexpected():
  for name in ("embeddings.register_tokens", "encoder.layer.0.mlp.weights_in.weight", "pooler.dense.weight",
               "encoder.layer.0.norm1.running_mean"):
    assert dinov2.to_flax_name(name, 2) is None
