"""A model with trained last stages: frozen stages have the pretrained weights, the others those of the checkpoint."""

import json

import jax
import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.builder.prepare import prepare
import mcsam_jax
from mcsam_jax import cli
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.demo.demo import write_image_files
from mcsam_jax.inference.image_encoder import encode_images
from mcsam_jax.models.visual_encoders.registry import make_encoder
from tests.testing.tiny import make_arguments, make_config, NETWORK, PHANTOMS
from tests.testing.tiny_workdir import generate_as_evaluate, make_tiny_workdir
from tests.testing.training_run import read_params


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return make_tiny_workdir(tmp_path_factory.mktemp("workdir"), encoder__trained_stages=1)


@pytest.fixture(scope="module")
def model(workdir):
  return mcsam_jax.load(workdir)


@pytest.mark.slow
def test_records_get_the_reports_of_evaluate(workdir, model):
  split = open_workdir(workdir).open_split("val")
  for report, expected in zip(model.generate(split), generate_as_evaluate(open_workdir(workdir), split), strict=True):
    assert report.text == expected.text and min(report.similarity) > 0.5
    assert report.log_prob == pytest.approx(expected.log_prob, abs=2e-3)


def test_the_network_reads_the_features_of_both_parts_of_the_encoder(workdir, model):
  record = open_workdir(workdir).open_split("val")[0]
  trained = model.variables["params"]["visual_encoder"]
  assert trained.keys() == {"layer4_0"}
  pretrained = model.encoder_variables
  assert (trained["layer4_0"]["conv1"]["kernel"] != pretrained["params"]["layer4_0"]["conv1"]["kernel"]).any()
  whole = pretrained | {"params": pretrained["params"] | trained}
  pixels = np.stack([images.decode(image, 32) for image in record["images"][:2]])
  encode = jax.jit(lambda pixels: encode_images(make_encoder("resnet_tiny"), model.config, whole, pixels))
  features = encode(pixels)                                                                              # [V, P, C]
  encoded = model.encode([record])

  @jax.jit
  def encode_features(features):
    memory = model.module.apply(model.variables, method="project_memory")
    return model.module.apply(model.variables, features[None], np.ones((1, 2), bool), np.array([[0, 1]]), memory, False,
                              method="encode_images")

  expected = encode_features(features)
  np.testing.assert_allclose(encoded.patches, expected.patches, atol=5e-3)


def run(*argv):
  assert cli.main(list(map(str, argv))) == 0


@pytest.mark.slow
def test_it_is_trained_resumed_evaluated_and_exported(tmp_path, capsys):
  fields = NETWORK | PHANTOMS | {
      "data.data_dir": tmp_path / "data", "encoder.frozen": True, "encoder.weights": tmp_path / "encoder.npz",
      "optimizer.warmup_steps": 1, "optimizer.schedule": "constant", "optimizer.ema_decay": 0.9, "train.eval_every": 8,
      "train.log_every": 4, "train.num_steps": 8, "eval.num_permutations": 2}
  stages = {"encoder.trained_stages": 1, "encoder.cached_augmentations": 2}
  variables = init_encoder_variables(make_config(NETWORK, PHANTOMS))
  save_weights(tmp_path / "encoder.npz", variables, {"pretraining_data": "none"})
  prepare(make_config(fields), log=lambda line: None)
  train = lambda name, *changes: run("train", "--config", "phantom", *make_arguments(fields, *changes), "--workdir",
                                     tmp_path / name)

  train("whole", stages, {"train.num_steps": 16})
  train("resumed", stages)
  train("resumed", stages, {"train.num_steps": 16})
  params, averages = read_params(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, (params, averages), read_params(tmp_path / "resumed"))
  trained = params["visual_encoder"]["layer4_0"]["bn2"]["scale"]
  assert params["visual_encoder"].keys() == {"layer4_0"}
  assert np.abs(trained - variables["params"]["layer4_0"]["bn2"]["scale"]).max() > 1e-4
  assert "learning_rate_encoder" in (tmp_path / "whole" / "metrics.jsonl").read_text()

  # A frozen run continues with trained stages, but not the other way round.
  train("frozen")
  train("continued", stages, {"train.init_from": tmp_path / "frozen"})
  assert read_params(tmp_path / "continued")[0]["visual_encoder"].keys() == {"layer4_0"}
  capsys.readouterr()
  assert cli.main(["train", "--config", "phantom", *make_arguments(fields, {"train.init_from": tmp_path / "whole"}),
                   "--workdir", str(tmp_path / "back")]) == 2
  assert "encoder.trained_stages=0, there 1" in capsys.readouterr().err

  workdir = tmp_path / "whole"
  run("evaluate", "--workdir", workdir, "--split", "val")
  assert json.loads((workdir / "eval" / "val-16.json").read_text())["num_studies"] == 6
  run("export", "--workdir", workdir, tmp_path / "exported", "--stablehlo")
  write_image_files(open_workdir(workdir).open_split("val")[0], tmp_path / "images")
  reports = []
  for path in (workdir, tmp_path / "exported"):
    capsys.readouterr()
    run("report", "--workdir", path, *sorted((tmp_path / "images").iterdir()))
    reports.append(capsys.readouterr().out.replace(str(path), ""))
  assert reports[0] == reports[1] and reports[0].strip()
