"""A published R2GenCMN is imported as a workdir that decodes; a checkpoint that doesn't match writes nothing."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from input_pipeline.builder.prepare import prepare
from mcsam_jax import cli
from mcsam_jax import config as configs
from mcsam_jax.pretrained.r2gencmn import CHILDREN

PARITY = pathlib.Path(__file__).parents[2] / "parity"
REPORTS = ["the heart is normal .", "the lungs are clear .", "there is an effusion ."]
WORDS = sorted({word for report in REPORTS for word in report.split()})             # including "."; <unk> is added


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
  """Returns --config arguments for a small R2GenCMN with prepared data."""
  folder = tmp_path_factory.mktemp("source")
  (folder / "images").mkdir()
  annotation = {}
  for split, count in (("train", 6), ("val", 2), ("test", 3)):
    annotation[split] = []
    for i in range(count):
      names = [f"{split}{i}_{view}.png" for view in (0, 1)]
      for name in names:
        noise = np.random.default_rng(i).integers(0, 255, (64, 64), np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
      annotation[split].append({"id": f"{split}{i}", "report": REPORTS[i % 3], "image_path": names, "split": split})
  (folder / "annotation.json").write_text(json.dumps(annotation))
  values = {"data.source_dir": folder, "data.data_dir": folder / "data", "data.image_size": 64, "data.short_side": 64,
            "encoder.name": "resnet_tiny", "tokenizer.threshold": 1, "tokenizer.max_length": 12, "model.width": 64,
            "model.feedforward_width": 96, "model.encoder_layers": 2, "model.decoder_layers": 2,
            "memory.num_slots": 128, "memory.slot_width": 64, "memory.top_k": 8, "decode.batch_size": 3,
            "train.batch_size": 2, "train.num_steps": 1, "optimizer.warmup_steps": 0, "eval.html_report": False}
  arguments = [f"--config.{name}={value}" for name, value in values.items()]
  prepare(configs.load_config("r2gencmn", arguments), log=lambda line: None)
  return arguments


def resnet_tiny_shapes():
  """Returns the shapes of a PyTorch ResNet of the size of `resnet_tiny`, by torchvision's names."""
  shapes = {"conv1.weight": (16, 3, 7, 7)}
  norms = {"bn1": 16}
  for number, (width_in, width) in enumerate(((16, 16), (16, 32), (32, 64), (64, 128)), start=1):
    block = f"layer{number}.0"
    convolutions = {"conv1": (width, width_in, 3, 3), "conv2": (width, width, 3, 3)}
    norms |= {f"{block}.bn1": width, f"{block}.bn2": width}
    if width != width_in:
      convolutions["downsample.0"] = (width, width_in, 1, 1)
      norms[f"{block}.downsample.1"] = width
    shapes |= {f"{block}.{name}.weight": shape for name, shape in convolutions.items()}
  return shapes | {f"{norm}.{name}": (width,) for norm, width in norms.items()
                   for name in ("weight", "bias", "running_mean", "running_var")}


def write_checkpoint(path, vocab_rows):
  """Writes random tensors with the names of R2GenCMN's published checkpoints, and a smaller image encoder."""
  rng = np.random.default_rng(0)
  reference = json.loads((PARITY / "r2gencmn_small.json").read_text())
  tensors = {}
  for name, shape in reference["keys"].items():
    shape = [128 if size == reference["d_vf"] and name.startswith("att_embed") else size for size in shape]
    shape = [vocab_rows if size == reference["vocab_rows"] else size for size in shape]
    tensors[f"encoder_decoder.{name}"] = rng.normal(size=shape, scale=0.3).astype(np.float32)
  tensors["encoder_decoder.model.src_embed.0.0.pe"] = np.zeros((1, 8, 64), np.float32)
  children = {name: child for child, name in CHILDREN.items()}
  for name, shape in resnet_tiny_shapes().items():
    first, _, rest = name.partition(".")
    if first in children:
      noise = np.asarray(0.05 * rng.normal(size=shape), np.float32)
      tensor = np.asarray(np.abs(noise) + 0.5) if "var" in rest else noise
      tensors[f"visual_extractor.model.{children[first]}.{rest}"] = tensor
  safetensors.numpy.save_file(tensors, path)


def test_imported_checkpoint_decodes(fields, tmp_path, capsys):
  source, workdir = tmp_path / "model.safetensors", tmp_path / "run"
  write_checkpoint(source, len(WORDS) + 2)                                                # <unk>, and the shared id 0
  assert cli.main(["import-weights", "model", str(source), str(workdir), "--config", "r2gencmn", *fields]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "converted   encoder_decoder.logit.weight -> params/decoder/logits/kernel" in lines
  assert "ignored     encoder_decoder.cmn.linears.0.weight" in lines
  assert "converted   visual_extractor.model.0.weight -> params/visual_encoder/conv1/kernel" in lines
  status = cli.main(["evaluate", "--workdir", str(workdir), "--split", "test"])
  assert status == 0, capsys.readouterr().err
  scores = json.loads((workdir / "eval" / "test-0.json").read_text())
  assert scores["num_studies"] == 3 and scores["decode"]["finished_beams"] == "in_place"
  status = cli.main(["import-weights", "model", str(source), str(workdir), "--config", "r2gencmn", *fields])
  assert status == 2 and str(workdir) in capsys.readouterr().err


@pytest.mark.slow
def test_imported_checkpoint_is_trained_further(fields, tmp_path, capsys):
  source, workdir = tmp_path / "model.safetensors", tmp_path / "run"
  write_checkpoint(source, len(WORDS) + 2)
  for verb in (["import-weights", "model", str(source), str(workdir)], ["train", "--workdir", str(workdir)]):
    assert cli.main([*verb, "--config", "r2gencmn", *fields]) == 0
  output = capsys.readouterr().out
  assert "resumed at step 0" in output and "trained 1 steps" in output


def test_checkpoint_with_another_vocabulary_is_refused(fields, tmp_path, capsys):
  source, workdir = tmp_path / "model.safetensors", tmp_path / "run"
  write_checkpoint(source, 40)
  assert cli.main(["import-weights", "model", str(source), str(workdir), "--config", "r2gencmn", *fields]) == 2
  output = capsys.readouterr()
  rows = len(WORDS) + 2
  mismatched = [line for line in output.out.splitlines() if line.startswith("mismatched")]
  for name in ("encoder_decoder.model.tgt_embed.0.lut.weight", "encoder_decoder.logit.weight"):
    line, = [line for line in mismatched if name in line]
    assert line.index("[40, 64]") < line.index(f"[{rows}, 64]")
  assert "nothing was written" in output.err and not workdir.exists()


def test_model_is_refused_as_image_encoder(tmp_path, capsys):
  source = tmp_path / "model.safetensors"
  write_checkpoint(source, 10)
  assert cli.main(["import-weights", "encoder", str(source), str(tmp_path / "out.npz")]) == 2
  assert "import-weights model" in capsys.readouterr().err
