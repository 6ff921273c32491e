"""MCSAM in JAX: a memory-based model that generates the report of a chest X-ray.

    model = mcsam_jax.load("runs/demo")                # a workdir of `mcsam train`, or a folder of `mcsam export`
    report, = model.generate([["frontal.png", "lateral.png"]])
    print(report)

`load_config`, `train` and `evaluate` are what the verbs of the command line call. All are imported when they are first
used, so that importing the package is instant. docs/python.md shows more.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from mcsam_jax.api import load, Model
  from mcsam_jax.config import load_config
  from mcsam_jax.errors import UserError
  from mcsam_jax.evaluation.evaluate import evaluate
  from mcsam_jax.training.train import train

__version__ = "0.2.0"
__all__ = ["evaluate", "load", "load_config", "Model", "train", "UserError"]

_MODULES = {"load": "mcsam_jax.api", "Model": "mcsam_jax.api", "load_config": "mcsam_jax.config",
            "evaluate": "mcsam_jax.evaluation.evaluate", "train": "mcsam_jax.training.train",
            "UserError": "mcsam_jax.errors"}


def __getattr__(name: str):
  """Returns a public name from the module that defines it, imported now."""
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
