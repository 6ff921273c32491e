"""Removes from the names of tensors what wrappers of PyTorch modules add to them.

torch.compile adds `_orig_mod.`, parallel and sharded training `module.` or `_fsdp_wrapped_module.`, Lightning and other
trainers `model.`; they may be nested, and some may stand inside a name ("encoder_decoder._orig_mod.logit.weight").
"""

from collections.abc import Callable, Iterable

import numpy as np

# Never the name of a submodule of the networks that are imported here, so they are removed wherever they stand.
WRAPPERS = frozenset(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
MAX_LEADING = 3                # modules of a trainer around the network, such as `lightning.model.net`


def peel_wrappers(tensors: dict[str, np.ndarray], is_network: Callable[[Iterable[str]], bool],
                  log: Callable[[str], None] = lambda line: None) -> dict[str, np.ndarray]:
  """Returns a state dict under the names of the network that the wrappers contain.

  Args:
    tensors: a state dict.
    is_network: whether names are those of a network that can be imported. If no wrapper contains one, only WRAPPERS
      are removed.
    log: receives a line for each kind of wrapper.
  """
  names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
  if len(set(names.values())) < len(names) or "" in names.values():     # two tensors would have the same name
    names = {name: name for name in tensors}
  found = sorted({part for name in tensors for part in name.split(".")} & WRAPPERS)
  if found and any(name != old for old, name in names.items()):
    log(f"removed the wrappers {', '.join(found)} from the names")
  leading = {".".join(name.split(".")[:count]) + "." for name in names.values()
             for count in range(1, min(MAX_LEADING, name.count(".")) + 1)}
  for prefix in ("", *sorted(leading, key=lambda prefix: (prefix.count("."), prefix))):
    if is_network([name.removeprefix(prefix) for name in names.values() if name.startswith(prefix)]):
      if prefix:
        log(f"removed the prefix {prefix} from the names")
      return {names[name].removeprefix(prefix): tensor for name, tensor in tensors.items()}
  return {names[name]: tensor for name, tensor in tensors.items()}
