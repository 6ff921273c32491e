"""An encoder from outside of the package takes part in everything by its name in the config alone."""

import json

import jax
import numpy as np
import pytest

from input_pipeline.batch import batch_spec, empty_batch
from mcsam_jax import cli
from mcsam_jax.checkpoints.encoder_weights import check_encoder, init_encoder_variables, load_encoder_weights
from mcsam_jax.checkpoints.weights import flatten_variables, save_weights
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.demo.demo import write_image_files
from mcsam_jax.errors import UserError
from mcsam_jax.models.initialize import init_variables, make_model
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders import encoder_flops
from mcsam_jax.models.visual_encoders.registry import frozen_feature_shape
from mcsam_jax.partitioning import param_specs
from mcsam_jax.training.flops import train_flops
from mcsam_jax.training.throughput import Throughput
from tests.testing.tiny import make_arguments, make_config, NETWORK, PHANTOMS

NAME = "tests.testing.tiny_vit:make_spec"
OWN = NETWORK | PHANTOMS | {"encoder.name": NAME}


def test_the_network_is_built_around_it():
  config = make_config(OWN)
  model, batch = make_model(config, 20, grid=4), empty_batch(config, 2)
  variables = jax.eval_shape(lambda: init_variables(model, config, batch))
  assert variables["params"]["visual_encoder"]["Conv_0"]["kernel"].shape == (8, 8, 2, 16)
  assert variables["params"]["patch_projection"]["kernel"].shape == (16, 16)
  assert "batch_stats" not in variables
  images = normalize_images(np.full((1, 1, 2, 2, 1), 51, np.uint8), NAME)
  np.testing.assert_allclose(images[0, 0, 0, 0], [(0.2 - 0.5) / 0.25, (0.2 - 0.4) / 0.3], rtol=1e-6)
  config = make_config(OWN, encoder__frozen=True, encoder__weights="w.npz")
  assert batch_spec(config, 3, frozen_feature_shape(config))["features"].shape == (3, 2, 16, 16)


def test_its_parameters_are_sharded_where_they_can_be():
  config = make_config(OWN)
  params = {"visual_encoder": jax.eval_shape(lambda: init_encoder_variables(config))["params"]}
  flat = flatten_variables(param_specs(params, {"data": 1, "fsdp": 2, "tensor": 3}))
  specs = {name: tuple(spec) for name, spec in flat.items()}
  assert specs["visual_encoder/Conv_0/kernel"] == (None, None, None, "fsdp")
  assert all("tensor" not in spec for spec in specs.values())
  assert not any(axis for axis in specs["visual_encoder/positions"])
  assert not any(axis for axis in specs["visual_encoder/LayerNorm_0/scale"])


def test_its_operations_are_counted_by_xla_or_left_out(monkeypatch):
  config = make_config(OWN)
  first, rest = encoder_flops.count_encoder_flops(NAME, 32)
  projections = 2 * 16 * (8 * 8 * 2 * 16 + 4 * 16 * 16)                           # patches; query, key, value, output
  assert first == 0 and projections < rest < 1.5 * projections
  assert train_flops(config, 20) > 3 * 8 * rest                                   # 4 studies of 2 views
  monkeypatch.setattr(encoder_flops, "_count_by_xla", lambda name, image_size: float("nan"))
  assert train_flops(config, 20) is None
  throughput = Throughput(4, 0, 1, None, 1e12, iter([0.0, 1.0]).__next__)
  assert "mfu" not in throughput.measure(1)


def test_a_module_that_breaks_its_promise_is_refused():
  check_encoder(make_config(OWN))
  with pytest.raises(UserError, match=r"encoder.name=.*\[1, 4, 4, 16\].*\[1, 4, 4, 32\]"):
    check_encoder(make_config(OWN, encoder__name="tests.testing.tiny_vit:make_wrong_spec"))


def test_weights_are_loaded_by_name_and_shape(tmp_path):
  config, path = make_config(OWN), tmp_path / "w.npz"
  variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype),
                           jax.eval_shape(lambda: init_encoder_variables(config)))
  save_weights(path, variables, {"architecture": "tiny_vit"})
  loaded, meta = load_encoder_weights(path, config)
  assert meta["architecture"] == "tiny_vit" and {float(leaf.min()) for leaf in jax.tree.leaves(loaded)} == {0.5}
  with pytest.raises(UserError, match="positions"):
    load_encoder_weights(path, make_config(OWN, data__image_size=64))


def test_weights_of_an_encoder_with_other_normalization_are_refused(tmp_path):
  config = make_config(PHANTOMS)
  save_weights(tmp_path / "w.npz", init_encoder_variables(config), {"architecture": "dinov2_base"})
  with pytest.raises(UserError, match="w.npz.*dinov2_base.*resnet_tiny"):
    load_encoder_weights(tmp_path / "w.npz", config)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_it_trains_evaluates_and_reports_by_config_alone(tmp_path, capsys, frozen):
  fields = OWN | {"data.data_dir": tmp_path / "data", "train.num_steps": 2, "train.eval_every": 2, "train.log_every": 1,
                  "optimizer.warmup_steps": 1, "eval.num_permutations": 2, "train.remat": "layers"}
  if frozen:
    save_weights(tmp_path / "w.npz", init_encoder_variables(make_config(OWN)), {"pretraining_data": "none"})
    fields |= {"encoder.frozen": True, "encoder.weights": tmp_path / "w.npz"}
  arguments = ["--config", "phantom", *make_arguments(fields)]
  run, workdir = lambda *argv: cli.main(list(map(str, argv))), tmp_path / "run"
  assert run("prepare", *arguments) == 0
  assert run("train", *arguments, "--workdir", workdir) == 0
  assert run("evaluate", "--workdir", workdir, "--split", "test") == 0
  assert json.loads((workdir / "eval" / "test-2.json").read_text())["num_studies"] == 6
  write_image_files(open_workdir(workdir).open_split("test")[0], tmp_path / "images")
  capsys.readouterr()
  assert run("report", "--workdir", workdir, *sorted((tmp_path / "images").iterdir())) == 0
  assert capsys.readouterr().out.strip()
