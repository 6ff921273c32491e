"""Converts PyTorch state dicts to Flax variables and reports what happened to every name."""

from collections.abc import Callable, Mapping
import dataclasses

from flax import traverse_util
import numpy as np

from mcsam_jax.checkpoints.weights import find_weight_error


@dataclasses.dataclass(frozen=True)
class TensorMapping:
  """How the tensors of a PyTorch network map to Flax variables.

  Attributes:
    to_flax_name: maps the name and the number of dimensions of a tensor to the flat name of its variable, such as
      params/conv1/kernel; None for tensors of another network.
    is_ignored: whether a tensor is part of the network, but not needed by the Flax model.
    needs_transpose: whether the axes of a tensor have to be reordered (see `to_flax_layout`).
  """
  to_flax_name: Callable[[str, int], str | None]
  is_ignored: Callable[[str], bool]
  needs_transpose: Callable[[str], bool] = lambda name: True


@dataclasses.dataclass
class ImportReport:
  """What happened to each tensor of the source and each variable of the Flax model."""
  architecture: str
  converted: list[tuple[str, str]] = dataclasses.field(default_factory=list)          # (tensor, variable)
  ignored: list[str] = dataclasses.field(default_factory=list)                        # tensors that aren't needed
  unexpected: list[str] = dataclasses.field(default_factory=list)                     # tensors of another network
  missing: list[str] = dataclasses.field(default_factory=list)                        # variables without a tensor
  mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
      default_factory=list)                                                           # (tensor, its shape, expected)
  invalid: list[tuple[str, str]] = dataclasses.field(default_factory=list)            # (tensor, reason)

  @property
  def is_complete(self) -> bool:
    """Whether every variable has valid values and every tensor is accounted for."""
    return not (self.unexpected or self.missing or self.mismatched or self.invalid)

  def lines(self) -> list[str]:
    """Returns one line per name, and a last line with the counts."""
    return [*(f"converted   {tensor} -> {variable}" for tensor, variable in self.converted),
            *(f"ignored     {tensor}" for tensor in self.ignored),
            *(f"unexpected  {tensor}" for tensor in self.unexpected),
            *(f"missing     {variable}" for variable in self.missing),
            *(f"mismatched  {tensor}: shape {list(found)} in the source, expected {list(expected)}"
              for tensor, found, expected in self.mismatched),
            *(f"invalid     {tensor}: {reason}" for tensor, reason in self.invalid),
            f"{self.architecture}: {len(self.converted)} tensors converted, {len(self.ignored)} ignored, "
            f"{len(self.unexpected)} unexpected, {len(self.missing)} missing, "
            f"{len(self.mismatched)} mismatched, {len(self.invalid)} invalid"]


def convert(tensors: dict[str, np.ndarray], architecture: str, expected: Mapping[str, tuple[int, ...]],
            mapping: TensorMapping) -> tuple[dict, ImportReport]:
  """Returns (variables, report) for a state dict; use the variables only if the report is complete.

  Args:
    tensors: the state dict.
    architecture: name of the network, for the report.
    expected: the shape of each variable by flat name.
    mapping: how the tensors map to the variables.
  """
  report = ImportReport(architecture)
  variables, tensor_by_variable = {}, {}
  for name, tensor in tensors.items():
    variable = mapping.to_flax_name(name, tensor.ndim)
    if mapping.is_ignored(name):
      report.ignored.append(name)
    elif variable is None or variable not in expected:
      report.unexpected.append(name)
    elif variable in tensor_by_variable:              # tied weights have two names
      is_tied = np.array_equal(tensor, tensors[tensor_by_variable[variable]])
      (report.ignored if is_tied else report.unexpected).append(name)
    else:
      transpose = mapping.needs_transpose(name)
      value = to_flax_layout(tensor) if transpose else tensor
      shape_matches, tensor_by_variable[variable] = value.shape == expected[variable], name
      # Values are read only if the shape matches: a damaged file may claim a shape that exceeds the memory.
      error = find_weight_error(tensor) if shape_matches else ""
      variables[variable] = value if error or not shape_matches else value.astype(np.float32)
      if error:
        report.invalid.append((name, error))
      elif shape_matches:
        report.converted.append((name, variable))
      else:
        # Shapes are compared in Flax's layout, but reported in that of the source.
        expected_shape = to_torch_shape(expected[variable]) if transpose else expected[variable]
        report.mismatched.append((name, tensor.shape, expected_shape))
  report.missing += [variable for variable in expected if variable not in variables]
  return traverse_util.unflatten_dict(variables, sep="/"), report


def to_flax_layout(tensor: np.ndarray) -> np.ndarray:
  """Returns a tensor with the axes in Flax's order: [out, in, k, k] -> [k, k, in, out], [out, in] -> [in, out]."""
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape of a variable in PyTorch's order of axes, the inverse of `to_flax_layout`."""
  return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
