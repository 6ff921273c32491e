"""An encoder from outside of the package takes part in everything by its name in the config alone."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from input_pipeline.batch import batch_spec, empty_batch
import mcsam_jax
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
from tests.testing import tiny_vit
from tests.testing.tiny import make_arguments, make_config, NETWORK, PHANTOMS
from tests.testing.training_run import ROOT

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


@pytest.fixture
def outside(tmp_path, monkeypatch):
  """Returns the name of the encoder in a module outside of the project."""
  folder = tmp_path / "outside"
  folder.mkdir()
  shutil.copy(tiny_vit.__file__, folder / "their_vit.py")
  monkeypatch.syspath_prepend(folder)
  yield "their_vit:make_spec"
  sys.modules.pop("their_vit", None)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_it_trains_evaluates_reports_and_exports_by_config_alone(tmp_path, outside, capsys, frozen):
  name = outside
  fields = OWN | {"encoder.name": name, "data.data_dir": tmp_path / "data", "train.num_steps": 2,
                  "train.eval_every": 2, "train.log_every": 1, "optimizer.warmup_steps": 1,
                  "eval.num_permutations": 2, "train.remat": "layers"}
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
  images = sorted((tmp_path / "images").iterdir())
  capsys.readouterr()
  assert run("report", "--workdir", workdir, *images, "--json") == 0
  expected = json.loads(capsys.readouterr().out)["studies"]
  assert expected[0]["report"]

  # The export gives the same report, and its program runs without the encoder's module.
  exported = tmp_path / "exported"
  assert run("export", "--workdir", workdir, exported, "--stablehlo") == 0
  shutil.rmtree(workdir)
  model = mcsam_jax.load(exported)
  report, = model.generate([images])
  assert report.text == expected[0]["report"] and report.log_prob == pytest.approx(expected[0]["log_prob"], abs=1e-3)
  pixels = np.zeros((1, 2, 32, 32, 1), np.uint8)
  for view, image in enumerate(images):
    pixels[0, view] = model.preprocess(image)
  np.save(tmp_path / "images.npy", pixels)
  assert json.loads((exported / "search.json").read_text())["batch_size"] == 4          # it calls len()
  elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
  example = subprocess.run([sys.executable, ROOT / "examples" / "run_stablehlo.py", exported, tmp_path / "images.npy"],
                           capture_output=True, text=True, check=True, env=elsewhere)
  assert example.stdout.split(" ", 1)[1].strip() == report.text

  # Where the module can't be imported, one line says so.
  failed = subprocess.run([sys.executable, "-m", "mcsam_jax", "report", "--workdir", exported, *images],
                          capture_output=True, text=True, check=False, cwd=tmp_path, env=elsewhere | {
                              "PYTHONPATH": str(ROOT)})
  assert failed.returncode == 2 and f"encoder.name={name}" in failed.stderr and "Traceback" not in failed.stderr
  assert failed.stderr.count("\n") == 1
