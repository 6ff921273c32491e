"""Reads the tensors of a pickled PyTorch module through inert stand-ins for its classes.

`torch.save(model)` writes the objects of a model rather than a state dict; torchxrayvision publishes such files. Its
pickle names the class of every layer. An object of such a class becomes a `StandIn`, which only keeps the attributes
that the pickle gives it: no library is imported, and nothing of the file or of PyTorch runs. Names outside of MODULES
are refused as in any other checkpoint (`torch_pickle.py`).
"""

import dataclasses
from typing import Any

# Libraries whose classes occur in such files.
MODULES = ("torch", "torchvision", "torchxrayvision", "numpy", "copyreg", "copy_reg")
MAX_NAME_LENGTH = 10_000                                   # deeper modules are those of a damaged file
SETS = ("builtins.set", "__builtin__.set")                 # modules hold sets of names since PyTorch 1.4


@dataclasses.dataclass(eq=False)
class StandIn:
  """Takes the place of an object of any class, and keeps the state that the pickle gives it."""
  state: Any = None


def has_stand_in(name: str) -> bool:
  """Returns whether objects of the class `package.module.Class` become stand-ins."""
  return name in SETS or name.partition(".")[0] in MODULES


def collect_tensors(module: StandIn, tensor_type: type) -> dict[str, Any]:
  """Returns the parameters and buffers of a pickled module by their names in its state dict.

  A module that occurs more than once gives its tensors under the first name.

  Args:
    module: the stand-in of the outermost module.
    tensor_type: type of the tensors in it.
  """
  tensors: dict[str, Any] = {}
  stack, seen = [(module, "")], set()
  while stack:                                              # not recursive: a damaged file may nest any number of times
    module, prefix = stack.pop()
    state = getattr(module, "state", None)
    if id(module) in seen or not isinstance(state, dict) or len(prefix) > MAX_NAME_LENGTH:
      continue
    seen.add(id(module))
    parameters, buffers, children = (entries if isinstance(entries := state.get(kind), dict) else {}
                                     for kind in ("_parameters", "_buffers", "_modules"))
    tensors |= {f"{prefix}{name}": value for name, value in (*parameters.items(), *buffers.items())
                if isinstance(value, tensor_type)}
    stack += [(child, f"{prefix}{name}.") for name, child in reversed(children.items()) if isinstance(child, StandIn)]
  return tensors
