"""Loads a trained model: from the workdir of a run, or from a folder of `mcsam export`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import os
import warnings

from absl import logging
from etils import epath
import jax

from mcsam_jax.api.model import Model
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.errors import UserError
from mcsam_jax.inference.compilation_cache import enable_compilation_cache
from mcsam_jax.inference.ood import load_or_fit_detector
from mcsam_jax.inference.predictor import Predictor
from mcsam_jax.partitioning import MESH_AXES

BATCH_SIZE = 4            # small, because most calls bring few studies; one compiled program serves any number of them


def load(path: str | os.PathLike | epath.Path, step: int | None = None, *, batch_size: int = BATCH_SIZE,
         mesh: Mapping[str, int] | None = None, check_images: bool = True, overrides: Sequence[str] = (),
         log: Callable[[str], None] | None = None) -> Model:
  """Loads a trained model. No data set is needed, and no TensorFlow unless the path is a bucket.

  Compiled programs are kept for the next process below ~/.cache/mcsam, unless JAX_COMPILATION_CACHE_DIR names another
  folder.

  Args:
    path: a workdir of `mcsam train` or a folder of `mcsam export`, local or gs://.
    step: training step of the checkpoint; None: the best one on val by `train.best_metric`, or the last.
    batch_size: studies that are computed at once. More are faster on an accelerator.
    mesh: how many of this host's devices split the batch (data), the batch and the parameters (fsdp), and heads, hidden
      units and vocabulary (tensor): {"data": 4, "tensor": 2}; -1 takes all that remain. None: the first device alone.
    check_images: whether to compare images with the training images. For a model whose encoder was trained this takes
      one more pass through the encoder.
    overrides: fields that the trained model doesn't depend on, as on the command line:
      "--config.decode.length_penalty=0.6".
    log: takes lines of progress; None: they become Python warnings, as they tell what is unusual.

  Raises:
    UserError: there is no trained model at this path, or none of that step; a file is damaged; a field can't be set;
      the mesh doesn't fit the devices.
  """
  log = log or (lambda line: warnings.warn(line, stacklevel=3))
  enable_compilation_cache()
  sizes = dict.fromkeys(MESH_AXES, 1) | dict(mesh or {})
  if unknown := sizes.keys() - set(MESH_AXES):
    raise UserError(f"mesh has the axis {sorted(unknown)[0]}, expected {', '.join(MESH_AXES)}")
  fields = {f"mesh.{axis}": size for axis, size in sizes.items()} | {"decode.batch_size": batch_size}
  workdir = open_workdir(path, [*(f"--config.{field}={value}" for field, value in fields.items()), *overrides], log)
  devices = jax.local_devices() if mesh else jax.local_devices()[:1]
  with _orbax_is_quiet():
    detector = load_or_fit_detector(workdir, log) if check_images else None
    return Model(Predictor(workdir, step, detector, log, devices=devices))


@contextlib.contextmanager
def _orbax_is_quiet() -> Iterator[None]:
  """Hides messages of absl's logger below errors: Orbax warns that it opens checkpoints read-only, as it should."""
  before = logging.get_verbosity()
  logging.set_verbosity(min(before, logging.ERROR))
  try:
    yield
  finally:
    logging.set_verbosity(before)
