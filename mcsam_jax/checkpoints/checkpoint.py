"""Orbax checkpoints of a workdir: the most recent ones and the best by a val metric, each with a manifest.

    checkpoints/STEP/                  written by Orbax in the background, atomically
    checkpoints/STEP/manifest.json     written after that: files with digests, scores, position in the data
    checkpoints/damaged-STEP/          a checkpoint whose files turned out to be damaged, hidden from Orbax

A checkpoint holds parameters, batch statistics, optimizer state, averaged parameters and step. It needs no random
keys: those of initialization, dropout and augmentation are functions of (seed, step, record, epoch). The position in
the data follows from the step, too; the manifest records it, and resuming at another position is refused.

A run that is killed between Orbax's commit and the manifest leaves a checkpoint without one. If another checkpoint has
a manifest, it counts as unfinished: older checkpoints are deleted only once the manifest is written, so there always
is another one. If none has a manifest, the checkpoint is used, with a log line that it can't be verified.
"""

from collections.abc import Callable, Iterable, Mapping
import errno
import itertools
import re
import threading
import time
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from mcsam_jax.checkpoints import manifest
from mcsam_jax.checkpoints.arrays import check_same_arrays, count_nonfinite
from mcsam_jax.checkpoints.provenance import describe_software
from mcsam_jax.checkpoints.retention import find_best_step, select_steps_to_keep
from mcsam_jax.distributed import multihost
from mcsam_jax.errors import UserError
from mcsam_jax.retryable import is_retryable

DELETION_SECONDS = 2                       # a run deletes an old checkpoint file by file
# How TensorStore reports that a file can't be written: a ValueError with the status code.
TENSORSTORE_ERROR = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
ITEM_NAME = "default"                      # folder that Orbax writes a state to, below that of its step


class Checkpoints:
  """Saves and restores training states below `workdir`/checkpoints. All hosts make the same calls."""

  def __init__(self, workdir: epath.PathLike, keep_last: int = 1, best_metric: str = "", read_only: bool = False):
    """Opens the checkpoints of a workdir.

    Args:
      workdir: the workdir, local or gs://.
      keep_last: number of the most recent checkpoints to keep.
      best_metric: val metric of the best checkpoint, which is kept as well; "": the last checkpoint is the best.
      read_only: for evaluation; nothing is created or deleted.
    """
    self.directory = epath.Path(workdir) / "checkpoints"
    self.keep_last, self.best_metric, self.read_only = keep_last, best_metric, read_only
    if self.directory.exists() and not self.directory.is_dir():
      raise UserError(f"{self.directory} is not a folder: move it away")
    self.manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self, create=not read_only, read_only=read_only,
            cleanup_tmp_directories=not read_only,
            lightweight_initialize=True))          # reads no file before it is verified
    scores = {step: _read_scores(self._folder(step)) for step in self.manager.all_steps()}
    scores = {int(step): values for step, values in multihost.broadcast_from_host0(scores).items()}
    self.scores = {step: values for step, values in scores.items() if values is not None}
    self.unreadable = sorted(set(scores) - set(self.scores))        # steps with a damaged manifest
    self._finishing: threading.Thread | None = None
    self._failure: Exception | None = None

  def steps(self) -> list[int]:
    """Returns the steps of finished checkpoints, or of all if none is finished; as host 0 sees them, on all hosts."""
    steps = sorted(self.manager.all_steps())
    return multihost.broadcast_from_host0([step for step in steps if self._has_manifest(step)] or steps)

  def latest(self) -> int | None:
    """Returns the step of the newest checkpoint, None if there is none."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Returns the step with the best val metric, or the latest if there is no metric or no score.

    Raises:
      UserError: a manifest is damaged, so the score of that step is unknown.
    """
    if self.best_metric and self.unreadable:
      step = self.unreadable[0]
      raise UserError(f"checkpoint {step} is damaged: {manifest.verify(self._folder(step))}. Its "
                      f"{self.best_metric} is unknown, so the best checkpoint is, too; "
                      + self._suggest_steps(set(self.steps()) - set(self.unreadable)))
    return find_best_step({step: self.scores.get(step, {}) for step in self.steps()}, self.best_metric)

  def _suggest_steps(self, steps: Iterable[int]) -> str:
    """Returns what to do about a damaged checkpoint, `steps` being the other ones."""
    numbers = ", ".join(map(str, sorted(steps)))
    return f"choose another one with --step: {numbers}" if numbers else "there is no other one"

  def save(self, step: int, state, scores: Mapping[str, float], data_position: Mapping[str, int] | None = None) -> None:
    """Writes the state of `step` in the background, after waiting for the previous one.

    If the checkpoint already exists, only its scores are updated.

    Args:
      step: the number of completed training steps.
      state: the training state, a tree of arrays.
      scores: val scores; {} without an evaluation.
      data_position: position in the data, see `check_data_position`.
    """
    self.wait()
    if step in self.manager.all_steps():
      if scores and scores != self.scores.get(step):
        self.scores[step] = dict(scores)
        if jax.process_index() == 0 and self._has_manifest(step):
          manifest.update_metadata(self._folder(step), {"scores": dict(scores)})
      return
    self.scores[step] = dict(scores)
    try:
      self.manager.save(step, args=ocp.args.StandardSave(state), force=True)
    except Exception as error:
      raise self._explain_write_error(step, error) from error
    metadata = {"step": step, "scores": dict(scores), "data_position": dict(data_position or {}),
                "software": describe_software()}
    self._finishing = threading.Thread(target=self._finish, args=(step, metadata), name=f"manifest of {step}")
    self._finishing.start()

  def _finish(self, step: int, metadata: dict) -> None:
    try:
      self.manager.wait_until_finished()
      if jax.process_index() == 0:
        manifest.write(self._folder(step), metadata)
    except Exception as error:            # raised by `wait`
      self._failure = self._explain_write_error(step, error)

  def wait(self) -> None:
    """Waits until the last save is on disk, including its manifest.

    Raises:
      UserError: the disk is full, or doesn't take the files for another reason.
      Exception: another error that prevented the save.
    """
    if self._finishing is not None:
      self._finishing.join()
      self._finishing = None
    if self._failure is not None:
      failure, self._failure = self._failure, None
      raise failure

  def _explain_write_error(self, step: int, error: Exception) -> Exception:
    """Returns the error of a save as one for the user, if a file system caused it and another start won't help."""
    if is_retryable(error) or not (isinstance(error, OSError)
                                   or isinstance(error, ValueError) and TENSORSTORE_ERROR.match(str(error))):
      return error
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC or "RESOURCE_EXHAUSTED" in str(error)
    explained = UserError(
        f"no space left for checkpoint {step} in {self.directory}: free some space and run the same command again, "
        "which continues from the checkpoint before it" if is_full else
        f"checkpoint {step} can't be written to {self.directory} ({' '.join(str(error).split())[:300]})")
    explained.__cause__ = error
    return explained

  def close(self) -> None:
    """Waits until the last save is on disk, and deletes checkpoints that aren't to be kept."""
    self.wait()
    if not self.read_only:
      steps = self.manager.all_steps()
      self._delete(set(steps) - self._select_steps_to_keep(steps))
    self.manager.close()

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Tells Orbax which checkpoints to keep after it has written the newest.

    The newest has no manifest yet, so the older ones are those that would be kept without it.
    """
    *older, newest = sorted(info.step for info in checkpoints)
    keep = self._select_steps_to_keep(older) | {newest}
    return [info.step in keep for info in checkpoints]

  def _select_steps_to_keep(self, steps: Iterable[int]) -> set[int]:
    """Returns which of `steps` to keep: the last, the best, and those with files that the run didn't write."""
    scores = {step: self.scores.get(step, {}) for step in steps}
    keep = select_steps_to_keep(scores, self.keep_last, self.best_metric)
    return keep | {step for step in scores if step not in keep and manifest.holds_other_files(self._folder(step))}

  def _folder(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _has_manifest(self, step: int) -> bool:
    return manifest.exists(self._folder(step))

  def _set_aside(self, step: int) -> None:
    """Renames a damaged checkpoint instead of deleting it: a disk with read errors may recover."""
    def rename() -> None:
      (self._folder(step)).rename(self._damaged_path(step))
    multihost.run_on_host0(rename)
    self._delete([step])                 # Orbax finds no folder, and forgets the step on all hosts

  def _damaged_path(self, step: int) -> epath.Path:
    """Returns the path that a damaged checkpoint gets; nothing is at it."""
    names = (f"damaged-{step}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(path for name in names if not (path := self.directory / name).exists())

  def _delete(self, steps: Iterable[int]) -> None:
    for step in sorted(steps):
      self.manager.delete(step)
      self.scores.pop(step, None)

  def restore_latest(self, abstract_state, log: Callable[[str], None] = print):
    """Returns the state of the newest intact checkpoint, None if there is no checkpoint at all.

    A log line names each newer one that is damaged or unfinished. After the state is restored, damaged ones are
    renamed and unfinished ones deleted.

    Args:
      abstract_state: shapes, types and shardings of the state.
      log: receives the log lines.

    Raises:
      UserError: all checkpoints are damaged, or they hold another model.
      Exception: an error that `is_retryable`: a disk or another host didn't answer. All checkpoints stay.
    """
    steps, problems = self.steps(), {}
    for step in reversed(steps):
      problem = manifest.verify(self._folder(step))
      if problem:
        problems[step] = problem
        log(f"checkpoint {step} is damaged, using the one before it: {problem}")
        continue
      args = ocp.args.StandardRestore(abstract_state)
      state = self._restore(step, lambda: self.manager.restore(step, args=args), log)
      all_newer = sorted(newer for newer in self.manager.all_steps() if newer > step)
      for newer in all_newer:
        if newer not in problems and manifest.holds_other_files(self._folder(newer)):
          raise UserError(f"{self._folder(newer)} holds files that no run wrote, and looks like a checkpoint that was "
                          "not finished, which would be deleted: move it away")
      for newer in all_newer:
        if newer in problems:
          log(f"checkpoint {newer} is renamed to {self._damaged_path(newer)}, which may be deleted")
          self._set_aside(newer)
        else:
          log(f"checkpoint {newer} was not finished, using the one before it")
          self._delete([newer])
      for older in self.unreadable:        # without its score it would be deleted, though it may be the best
        if older < step:
          log(f"the manifest of checkpoint {older} is damaged; it is renamed to {self._damaged_path(older)}")
          self._set_aside(older)
      return state
    if problems:
      raise UserError(f"every checkpoint in {self.directory} is damaged ({problems[steps[-1]]}): restore a copy, or "
                      "delete the folder to start again")
    return None

  def restore_variables(self, step: int, abstract_variables: Mapping, ema: bool,
                        log: Callable[[str], None] = print) -> dict:
    """Returns the variables of `step` for evaluation, without reading the optimizer state.

    Args:
      step: the step of the checkpoint.
      abstract_variables: shapes, types and shardings of `params` and `batch_stats`.
      ema: True if the checkpoint holds averaged parameters, which are then read as `params`.
      log: receives a line if the checkpoint can't be verified.

    Raises:
      UserError: there is no checkpoint of this step, its files are damaged, or it holds another model.
      Exception: an error that `is_retryable`: a disk or another host didn't answer.
    """
    steps = multihost.broadcast_from_host0(sorted(self.manager.all_steps()))
    if step not in steps:
      raise UserError(f"{self.directory} has no checkpoint of step {step}; available: "
                      f"{', '.join(map(str, steps)) or 'none'}")
    if problem := manifest.verify(self._folder(step)):
      self._check_still_exists(step)
      raise UserError(f"checkpoint {step} is damaged: {problem}; " +
                      self._suggest_steps(other for other in steps if other != step))
    params_key = "ema_params" if ema else "params"                       # fields of TrainState
    item = {params_key: abstract_variables["params"], "batch_stats": abstract_variables["batch_stats"]}
    args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                                  partial_restore=True)

    def restore():
      saved = ocp.PyTreeCheckpointHandler().metadata(self._folder(step) / ITEM_NAME).tree
      check_same_arrays({name: saved[name] for name in item}, item)
      return self.manager.restore(step, args=args)

    restored = self._restore(step, restore, log)
    if num_nonfinite := count_nonfinite(restored):
      raise UserError(f"checkpoint {step} in {self.directory} has {num_nonfinite} arrays with values that are NaN or "
                      "infinite, from which no report can be generated; "
                      + self._suggest_steps(other for other in steps if other != step))
    return {"params": restored[params_key], "batch_stats": restored["batch_stats"]}

  def _restore(self, step: int, restore: Callable[[], Any], log: Callable[[str], None]):
    """Returns restore(), with its errors classified as retryable or as a UserError."""
    is_verified = self._has_manifest(step)
    if not is_verified:
      log(f"checkpoint {step} has no {manifest.NAME}, so it is used without verification")
    try:
      return restore()
    except Exception as error:   # Orbax and TensorStore raise many types for truncated files and for other shapes
      if is_retryable(error) or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        raise
      self._check_still_exists(step)
      reason = ("its files are intact, so it holds another model; use the config and the version that wrote it, or a "
                "new workdir" if is_verified else
                "it is damaged or holds another model; delete the folder to continue without it")
      raise UserError(f"{self._folder(step)} can't be restored: {reason} "
                      f"({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error

  def _check_still_exists(self, step: int) -> None:
    """Raises UserError if the folder of a checkpoint that couldn't be read is deleted, or is just being deleted."""
    folder = self._folder(step)
    deadline = time.monotonic() + (DELETION_SECONDS if manifest.is_incomplete(folder) else 0)
    while not manifest.is_deleted(folder):
      if time.monotonic() >= deadline:
        return
      time.sleep(0.1)
    raise UserError(f"checkpoint {step} in {self.directory} was deleted meanwhile, as by a run that saved a newer one: "
                    "run the same command again")

  def check_data_position(self, step: int, data_position: Mapping[str, int]) -> None:
    """Compares the position in the data that a checkpoint was saved at with the one at which the run would resume.

    Args:
      step: the step of the checkpoint.
      data_position: what the next batch is a function of: number of `examples` seen, `seed` of their order, number of
        `records`.

    Raises:
      UserError: the positions differ.
    """
    saved = manifest.read_metadata(self._folder(step)).get("data_position", {})
    for name, value in saved.items():
      if data_position.get(name) != value:
        raise UserError(f"{self._folder(step)} was saved with {name}={value}, this run has "
                        f"{name}={data_position.get(name)}, so it would see other records than the interrupted run: "
                        "use the same data and config, or a new workdir")


def to_shape_dtype_struct(tree, shardings):
  """Returns the shapes, types and shardings of a tree of (abstract) arrays."""
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      tree, shardings)


def _read_scores(folder: epath.Path) -> dict[str, float] | None:
  """Returns the val scores of a checkpoint, {} if there are none, None if its manifest is damaged."""
  try:
    return manifest.read_metadata(folder).get("scores", {})
  except ValueError:
    return None
