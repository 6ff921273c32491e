"""Orbax checkpoints of a workdir: the last few, and the best by a val metric."""

from collections.abc import Mapping

from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mcsam_jax.errors import UserError

LOWER_IS_BETTER = ("token_loss",)


class Checkpoints:
  """Saves and restores training states below `workdir`/checkpoints."""

  def __init__(self, workdir: epath.Path, keep_last: int = 1, best_metric: str = "", read_only: bool = False):
    """Opens the checkpoints of a workdir.

    Args:
      keep_last: how many of the newest stay.
      best_metric: the val metric by which the one best checkpoint, which stays too, is best; "": the last is.
      read_only: for evaluation; nothing is created or deleted.
    """
    self.directory = epath.Path(workdir) / "checkpoints"
    self.best_metric = best_metric
    policies = [checkpoint_managers.LatestN(keep_last)]
    if best_metric:
      policies.append(checkpoint_managers.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
    policy = checkpoint_managers.AnyPreservationPolicy(policies)
    self.manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policy, best_fn=self._score, create=not read_only,
            read_only=read_only, cleanup_tmp_directories=not read_only))

  def _score(self, metrics: Mapping | None) -> float:
    sign = -1 if self.best_metric in LOWER_IS_BETTER else 1
    return float(sign * metrics[self.best_metric] if self.best_metric in (metrics or {}) else float("-inf"))

  def save(self, step: int, state, metrics: Mapping[str, float]) -> None:
    """Writes the state of `step` with its val metrics, in the background; a step already there is left alone."""
    if step not in self.manager.all_steps():
      self.manager.save(step, args=ocp.args.StandardSave(state), metrics=dict(metrics), force=True)

  def latest(self) -> int | None:
    return self.manager.latest_step()

  def best(self) -> int | None:
    """Returns the step with the best val metric, the latest where none was scored or none is to be best."""
    if not self.best_metric:
      return self.latest()
    return self.manager.best_step() if self.manager.all_steps() else None

  def restore(self, step: int, abstract_state):
    """Returns the state of `step`, placed as `abstract_state` (shapes, types, shardings) says.

    Raises:
      UserError: there is no such step, the files are damaged, or hold another model.
    """
    steps = sorted(self.manager.all_steps())
    if step not in steps:
      raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {steps or 'none'}")
    try:
      return self.manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
    except Exception as error:   # Orbax and TensorStore raise many kinds for files that are cut off or of other shapes
      others = [other for other in steps if other != step]
      way_out = (f"delete the folder to go on from step {max(others)}" if others else
                 "it is the only one: delete the folder to start again")
      raise UserError(f"{self.directory / str(step)} can't be restored, it is damaged or holds another model; "
                      f"{way_out} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self.manager.wait_until_finished()
    self.manager.close()


def abstract(state, shardings):
  """Returns shapes, types and shardings of a state that `jax.eval_shape` gave."""
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      state, shardings)
