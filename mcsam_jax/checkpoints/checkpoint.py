"""Orbax checkpoints of a workdir: the last few, and the best by a val metric, each with a manifest of its files.

    checkpoints/STEP/                  as Orbax writes it, in the background, whole or not at all
    checkpoints/STEP/manifest.json     written when that is done: files with digests, scores, place in the data
    checkpoints/damaged-STEP/          what STEP was until its files were found to be others, out of Orbax's sight

A checkpoint holds parameters, batch statistics, optimizer state, moving average and step. It needs no random keys:
those of initialisation, dropout and augmentation are functions of (seed, step, record, epoch). The place in the data
follows from the step too; the manifest says what it was, and going on from another place is refused.

A run that is killed between Orbax's commit and the manifest leaves a checkpoint without one. It counts as unfinished
where another has one; older ones are deleted after the manifest is there, so another there is. Where none has one,
the run is older than manifests: the checkpoint is used, with a line that says that it can't be verified.
"""

from collections.abc import Iterable, Mapping
import json
import threading

from etils import epath
import jax
import orbax.checkpoint as ocp

from mcsam_jax.checkpoints import manifest
from mcsam_jax.distributed import multihost
from mcsam_jax.errors import UserError
from mcsam_jax.retryable import is_retryable

LOWER_IS_BETTER = ("token_loss",)


class Checkpoints:
  """Saves and restores training states below `workdir`/checkpoints. All hosts make the same calls."""

  def __init__(self, workdir: epath.Path, keep_last: int = 1, best_metric: str = "", read_only: bool = False):
    """Opens the checkpoints of a workdir.

    Args:
      keep_last: how many of the newest stay.
      best_metric: the val metric by which the one best checkpoint, which stays too, is best; "": the last is.
      read_only: for evaluation; nothing is created or deleted.
    """
    self.directory = epath.Path(workdir) / "checkpoints"
    self.keep_last, self.best_metric, self.read_only = keep_last, best_metric, read_only
    self.manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self, create=not read_only, read_only=read_only,
            cleanup_tmp_directories=not read_only,
            lightweight_initialize=True))          # reads no file before it was verified
    found = {step: read_scores(self.directory / str(step)) for step in self.manager.all_steps()}
    self.scores = {int(step): scores for step, scores in multihost.broadcast_from_host0(found).items()}
    self._finishing: threading.Thread | None = None
    self._failure: Exception | None = None

  def steps(self) -> list[int]:
    """Returns the steps that there are, finished ones if any is; what host 0 sees, on all hosts."""
    steps = sorted(self.manager.all_steps())
    return multihost.broadcast_from_host0([step for step in steps if self._has_manifest(step)] or steps)

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Returns the step with the best val metric, the latest where none was scored or none is to be best."""
    return best_step({step: self.scores.get(step, {}) for step in self.steps()}, self.best_metric)

  def save(self, step: int, state, scores: Mapping[str, float], place: Mapping[str, int] | None = None) -> None:
    """Writes the state of `step` in the background; waits for the one before. What is there gets the scores alone.

    Args:
      scores: of val; {} where it wasn't looked at.
      place: in the data, see `check_data_position`.
    """
    self.wait()
    if step in self.manager.all_steps():
      if scores and scores != self.scores.get(step):
        self.scores[step] = dict(scores)
        if jax.process_index() == 0 and self._has_manifest(step):
          manifest.update_metadata(self.directory / str(step), {"scores": dict(scores)})
      return
    self.scores[step] = dict(scores)
    self.manager.save(step, args=ocp.args.StandardSave(state), force=True)
    facts = {"step": step, "scores": dict(scores), "place": dict(place or {})}
    self._finishing = threading.Thread(target=self._finish, args=(step, facts), name=f"manifest of {step}")
    self._finishing.start()

  def _finish(self, step: int, facts: dict) -> None:
    try:
      self.manager.wait_until_finished()
      if jax.process_index() == 0:
        manifest.write(self.directory / str(step), facts)
    except Exception as error:            # raised where the run waits for it
      self._failure = error

  def wait(self) -> None:
    """Waits until what was saved is on disk, its manifest too.

    Raises:
      what hindered it: OSError for a full disk.
    """
    if self._finishing is not None:
      self._finishing.join()
      self._finishing = None
    if self._failure is not None:
      failure, self._failure = self._failure, None
      raise failure

  def close(self) -> None:
    """Waits until what was saved is on disk, and what is too old no longer."""
    self.wait()
    if not self.read_only:
      steps = self.manager.all_steps()
      self._delete(set(steps) - steps_to_keep({step: self.scores.get(step, {}) for step in steps}, self.keep_last,
                                     self.best_metric))
    self.manager.close()

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Tells Orbax which checkpoints stay when it has written the newest of them.

    Those that would stay without the newest too: it has no manifest yet.
    """
    *before, newest = sorted(info.step for info in checkpoints)
    stay = steps_to_keep({step: self.scores.get(step, {}) for step in before}, self.keep_last, self.best_metric) | {newest}
    return [info.step in stay for info in checkpoints]

  def _has_manifest(self, step: int) -> bool:
    return manifest.is_there(self.directory / str(step))

  def _put_aside(self, step: int) -> None:
    """Renames a damaged checkpoint instead of deleting it: a disk that reads wrong now may read right later."""
    def rename() -> None:
      aside = self.directory / f"damaged-{step}"
      if aside.exists():
        aside.rmtree()
      (self.directory / str(step)).rename(aside)
    multihost.run_on_host0(rename)
    self._delete([step])                 # Orbax finds no folder, and forgets the step on all hosts

  def _delete(self, steps: Iterable[int]) -> None:
    for step in sorted(steps):
      self.manager.delete(step)
      self.scores.pop(step, None)

  def restore_latest(self, abstract_state, log=print):
    """Returns the state of the newest checkpoint that is whole, None where there is none at all.

    Newer ones that are damaged or were never finished are named in a line. Once the state is restored, the first are
    put aside and the others deleted.

    Raises:
      UserError: all are damaged, or hold another model.
      an error that `is_retryable`: a disk or another host didn't answer. Then all stay.
    """
    steps, problems = self.steps(), {}
    for step in reversed(steps):
      problem = manifest.verify(self.directory / str(step))
      if problem:
        problems[step] = problem
        log(f"checkpoint {step} is damaged, the one before it is used: {problem}")
        continue
      state = self._restore(step, ocp.args.StandardRestore(abstract_state), log)
      for other in sorted(other for other in self.manager.all_steps() if other > step):
        if other in problems:
          self._put_aside(other)
          log(f"checkpoint {other} is kept as {self.directory / f'damaged-{other}'}; nothing needs it")
        else:
          log(f"checkpoint {other} was not finished, the one before it is used")
          self._delete([other])
      return state
    if problems:
      raise UserError(f"no checkpoint in {self.directory} is whole ({problems[steps[-1]]}): put a copy there, or delete "
                      "the folder to start again")
    return None

  def restore_variables(self, step: int, abstract_variables: dict, ema: bool, log=print) -> dict:
    """Returns the variables of `step` that write reports, without reading the optimizer's state.

    Args:
      abstract_variables: `params` and `batch_stats`: shapes, types, shardings.
      ema: whether the checkpoint holds averaged parameters, which are then the ones that are read.

    Raises:
      UserError: there is no such step, the files are damaged, or hold another model.
      an error that `is_retryable`: a disk or another host didn't answer.
    """
    self._check_restorable(step)
    params = "ema_params" if ema else "params"
    item = {params: abstract_variables["params"], "batch_stats": abstract_variables["batch_stats"]}
    arguments = ocp.args.PyTreeRestore(item=item, partial_restore=True,
                                       restore_args=ocp.checkpoint_utils.construct_restore_args(item))
    restored = self._restore(step, arguments, log)
    return {"params": restored[params], "batch_stats": restored["batch_stats"]}

  def _check_restorable(self, step: int) -> None:
    """Raises UserError where there is no such step, or its files are damaged."""
    steps = multihost.broadcast_from_host0(sorted(self.manager.all_steps()))
    if step not in steps:
      raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {steps or 'none'}")
    if problem := manifest.verify(self.directory / str(step)):
      others = [other for other in steps if other != step]
      raise UserError(f"checkpoint {step} is damaged: {problem}; " +
                      (f"--step takes another: {', '.join(map(str, others))}" if others else "there is no other"))

  def _restore(self, step: int, arguments: ocp.args.CheckpointArgs, log):
    verified = self._has_manifest(step)
    if not verified:
      log(f"checkpoint {step} has no {manifest.NAME}: it can't be verified, and is used as it is")
    try:
      return self.manager.restore(step, args=arguments)
    except Exception as error:   # Orbax and TensorStore raise many kinds for files that are cut off or of other shapes
      if is_retryable(error) or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        raise
      why = ("its files are what was written, so it holds another model; use the config and the version that wrote it, "
             "or a new workdir" if verified else
             "it is damaged or holds another model; delete the folder to go on without it")
      raise UserError(f"{self.directory / str(step)} can't be restored: {why} "
                      f"({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error

  def check_data_position(self, step: int, place: Mapping[str, int]) -> None:
    """Compares the place in the data that a checkpoint was saved at with the one from which the run would go on.

    Args:
      place: `examples` seen, `seed` of their order, number of `records`: what the next batch is a function of.

    Raises:
      UserError: it isn't the same.
    """
    saved = (manifest.facts(self.directory / str(step)) or {}).get("place", {})
    for name, value in saved.items():
      if place.get(name) != value:
        raise UserError(f"{self.directory / str(step)} was saved with {name} {value}, this run has {place.get(name)}: "
                        "it would see other records than the run that was interrupted; give it the same data and "
                        "config, or use a new workdir")


def steps_to_keep(scores: Mapping[int, Mapping], keep_last: int, best_metric: str) -> set[int]:
  """Returns which of the scored steps stay: the last, and the best."""
  best = best_step(scores, best_metric)
  return set(sorted(scores)[-keep_last:]) | ({best} if best is not None else set())


def best_step(scores: Mapping[int, Mapping], metric: str) -> int | None:
  """Returns the step that is best by a val metric; the last where there is no metric, or none has been scored."""
  scored = {step: value[metric] for step, value in scores.items() if metric in value}
  if not scored:
    return max(scores, default=None)
  sign = -1 if metric in LOWER_IS_BETTER else 1
  return max(scored, key=lambda step: (sign * scored[step], step))


def read_scores(folder: epath.Path) -> dict[str, float]:
  """Returns the val scores of a checkpoint; {} where there are none, or none that can be read."""
  facts = manifest.facts(folder)
  if facts is not None:
    return facts.get("scores", {})
  try:
    return json.loads((folder / "metrics" / "metrics").read_text())      # of runs before there were manifests
  except (OSError, ValueError):
    return {}


def to_shape_dtype_struct(state, shardings):
  """Returns shapes, types and shardings of a state that `jax.eval_shape` gave."""
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      state, shardings)
