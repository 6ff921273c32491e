"""Trains MCSAM. `train` reads top to bottom in the order in which things happen.

Given the data and the machine, the config determines a run: the state after step k is the same whether the run was
interrupted or not. Every random key depends only on config.seed and on the step, or on a record and its epoch, and the
records of a batch are a function of the seed and the number of examples seen. So a checkpoint of the state and that
number is enough to resume.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import itertools
import math
import shlex
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.batch import empty_batch
from input_pipeline.pipeline import train_batches
from input_pipeline.token_table import load_token_table
from mcsam_jax.checkpoints.checkpoint import Checkpoints, find_best_step, to_shape_dtype_struct
from mcsam_jax.checkpoints.init_from import load_initial_variables, load_origin, Origin, replace_variables
from mcsam_jax.checkpoints.workdir import acquire_lock, create_workdir, Workdir
from mcsam_jax.config import absolute_path, read_config
from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.mesh import (
  check_train_batch_size,
  local_rows,
  make_mesh,
  replicated,
  shard_batches_in_thread,
  state_shardings,
)
from mcsam_jax.distributed.preemption import PreemptionGuard, VOTE_LAG
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.extensions.by_name import is_import_name, load_by_name
from mcsam_jax.inference.compilation_cache import enable_compilation_cache
from mcsam_jax.inference.feature_cache import load_features_on_all_hosts, load_train_features_on_all_hosts
from mcsam_jax.labelers.registry import load_finding_labels
from mcsam_jax.models.findings_head import compute_positive_weights
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import frozen_feature_shape, has_trained_encoder
from mcsam_jax.training.metrics_logger import is_logged, make_metrics_logger
from mcsam_jax.training.optimizer import schedule_depends_on_length
from mcsam_jax.training.reward.reward_state import init_reward_state
from mcsam_jax.training.reward.reward_step import RewardStep
from mcsam_jax.training.reward.rewards import RewardScorer
from mcsam_jax.training.run_log.console_log import ConsoleLog
from mcsam_jax.training.train_state import init_train_state, TrainState
from mcsam_jax.training.train_step import make_term_gradient_norms, make_train_step
from mcsam_jax.training.validation import check_best_metric, Validation


def train(config: ConfigDict, workdir: str, log: Callable[[str], None] = print) -> None:
  """Trains a model in `workdir`, resuming from its latest checkpoint if it has one. All hosts call this function.

  Raises:
    UserError: something that the user can fix, such as a setting or too many corrupt records.
    NonFiniteError: a loss or gradient norm is not finite.
    Preempted: a host received SIGTERM or Ctrl-C; the steps completed until then, if any, are saved.
  """
  with contextlib.ExitStack() as on_exit:
    # Console log, watchdog, devices, signals.
    console = on_exit.enter_context(ConsoleLog(log))
    watchdog = on_exit.enter_context(Watchdog(config.train.watchdog_timeout_minutes))
    log = watchdog.beat_on_log(multihost.log_on_host0(console))
    if jax.process_count() == 1:                          # the launcher of a pod names a folder for all hosts
      enable_compilation_cache()
    mesh = make_mesh(config)
    check_train_batch_size(config, mesh.shape)
    check_best_metric(config)
    check_own_functions(config)
    log(f"{jax.device_count()} x {jax.devices()[0].device_kind} on {jax.process_count()} host(s), "
        f"mesh {dict(mesh.shape)}; {config.train.batch_size} studies per step, "
        f"{config.train.batch_size // (mesh.shape['data'] * mesh.shape['fsdp'])} per device")
    stop = on_exit.enter_context(PreemptionGuard())

    # Workdir: config, tokenizer, initial memory slots, pretrained encoder. Host 0 creates it. All hosts read the
    # checkpoint of another run that a new one starts from.
    is_new = not multihost.broadcast_from_host0((absolute_path(workdir) / "config.json").exists())
    origin = load_origin(config, mesh, log) if is_new and config.train.init_from else None
    with watchdog.paused_unless_host0():
      work = multihost.host0_then_others(lambda: open_or_create_workdir(workdir, config, log, origin),
                                         context=stop.immediate)
    # Host 0 holds the workdir's lock until the run ends.
    on_exit.enter_context(multihost.run_on_host0(lambda: acquire_lock(work.path, log)) or contextlib.nullcontext())
    multihost.run_on_host0(lambda: console.open(work.path, f"seed {config.seed}"))
    config, tokenizer, num_steps = work.config, work.tokenizer, work.config.train.num_steps
    next_command = f"mcsam evaluate --workdir {shlex.quote(str(work.path))} --split test"

    # Data. The first start reads all records once: for their tokens, and for the features of frozen stages.
    train_split, val_split = work.open_split("train"), work.open_split("val")
    log(f"{len(train_split)} studies in train, {len(val_split)} in val, vocabulary of {tokenizer.vocab_size}")
    with watchdog.paused_unless_host0():
      for split in (train_split, val_split):
        multihost.host0_then_others(lambda: load_token_table(split, tokenizer, log), context=stop.immediate)
    finding_labels = load_finding_labels(config, train_split, tokenizer, log)
    is_reward = config.train.objective == "reward"
    reads_reports = config.train.eval_search == "mbr" or is_reward and config.reward.cider
    train_reports = train_split.read_reports(log) if reads_reports else ()
    train_features = load_train_features_on_all_hosts(work, train_split, stop, watchdog, log)
    val_features = load_features_on_all_hosts(work, val_split, stop, watchdog, log)

    # Model and state, initialized under jit, directly in their sharding. From here on all hosts run the same programs.
    on_exit.enter_context(jax.set_mesh(mesh))
    model = make_model(config, tokenizer.vocab_size, work.patch_grid)
    # Parameters depend only on the shapes of a batch.
    example = empty_batch(config, 1, frozen_feature_shape(config))
    init_state = functools.partial(init_reward_state if is_reward else init_train_state, model, config, example)
    abstract_state = jax.eval_shape(init_state)
    shardings = state_shardings(mesh, abstract_state)
    state = jax.jit(init_state, out_shardings=shardings)()
    state = load_initial_weights(state, work, finding_labels, shardings)
    start_params = copy_params(state, shardings) if is_reward and config.reward.kl_weight else None
    log(f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.1f} M parameters")

    # Checkpoint to resume from.
    checkpoints = Checkpoints(work.path, config.train.keep_last, config.train.best_metric)
    on_exit.callback(checkpoints.wait)                    # completes a save in progress, however the run ends

    def data_position(step: int) -> dict[str, int]:
      return {"examples": step * config.train.batch_size, "seed": config.seed, "records": len(train_split)}

    restored = cast(TrainState | None,
                    checkpoints.restore_latest(to_shape_dtype_struct(abstract_state, shardings), log))
    if restored is not None:
      state = restored
      checkpoints.check_data_position(int(state.step), data_position(int(state.step)))
      log(f"resumed at step {int(state.step)}")
    first_step = int(state.step)

    def is_eval_step(step: int) -> bool:
      return step == num_steps or step % config.train.eval_every == 0

    def is_finished(step: int) -> bool:
      """Returns whether training ends after `step`: it was the last one, or `train.patience` is exhausted."""
      return step >= num_steps or count_evaluations_since_best(config, checkpoints, step) >= (
          config.train.patience or math.inf)

    # A run that starts from another one is evaluated before its first step, too: perhaps nothing better follows.
    eval_is_missing = ((first_step > 0 or bool(config.train.init_from)) and is_eval_step(first_step)
                       and not checkpoints.scores.get(first_step))
    if is_finished(first_step) and not eval_is_missing:
      log(f"already trained for {first_step} steps; next: {next_command}")
      checkpoints.close()
      return

    # Jitted functions, compiled at their first call.
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    if is_reward:
      scorer = RewardScorer(config, tokenizer, train_reports)
      train_step = RewardStep(model, config, tokenizer, scorer, mesh, shardings, start_params, first_step)
    else:
      train_step = jax.jit(make_train_step(model, config, tokenizer.eos_id), donate_argnums=0,
                           out_shardings=(shardings, replicated(mesh)))
    logs_term_norms = config.train.log_term_norms and config.model.use_alignment and not is_reward
    term_gradient_norms = make_term_gradient_norms(model, config, tokenizer.eos_id, replicated(mesh))
    evaluate_val = Validation(model, config, tokenizer, mesh, val_split, val_features, train_reports, stop, watchdog)

    metrics_logger = make_metrics_logger(config, work.path, first_step, len(train_split), tokenizer.vocab_size,
                                         watchdog, log)
    on_exit.callback(metrics_logger.close)

    def evaluate_and_save(step: int) -> None:
      result = evaluate_val(state.variables)
      metrics_logger.log_eval(step, result)
      console.flush()
      checkpoints.save(step, state, result.scores, data_position(step))

    # Training. A signal takes effect after the step in progress, which is then saved: see `except Preempted`.
    batches = shard_batches_in_thread(mesh, train_batches(
        train_split, tokenizer, config, first_step, num_steps - first_step + int(is_reward), train_features,
        local_rows(mesh, config.train.batch_size), finding_labels))
    # Samples are drawn one step ahead.
    inputs: Iterator[Any] = itertools.pairwise(batches) if is_reward else batches
    completed = first_step
    with stop.deferred():
      try:
        if eval_is_missing:
          evaluate_and_save(first_step)
        for step, batch in metrics_logger.iterate_steps(inputs):
          if is_finished(step - 1):                       # train.patience
            break
          stop.check(lag=VOTE_LAG)                        # raises Preempted at the same step on all hosts
          gradient_norms = {}
          # At the first step, too, so that both jitted functions are compiled before throughput is measured.
          if logs_term_norms and (is_logged(config, step) or step == first_step + 1):
            gradient_norms = term_gradient_norms(state, batch)
          state, metrics = train_step(state, batch)
          completed = step
          metrics_logger.log_async(step, metrics | gradient_norms)
          if is_eval_step(step):
            metrics_logger.flush()                        # raises NonFiniteError before a bad state is saved
            evaluate_and_save(step)
            metrics_logger.restart_clock(step)
          elif config.train.checkpoint_every and step % config.train.checkpoint_every == 0:
            metrics_logger.flush()
            checkpoints.save(step, state, {}, data_position(step))
      except Preempted:
        if completed > first_step:
          metrics_logger.flush()
          checkpoints.save(completed, state, {}, data_position(completed))
        checkpoints.close()
        log(f"stopped at step {completed}/{num_steps}" + (" and saved" if completed else "")
            + "; run the same command to resume")
        raise
    watchdog.beat("waiting until the last checkpoint is written")
    checkpoints.close()
    if completed < num_steps:
      log(f"stopped early: {config.train.best_metric} on val hasn't improved for {config.train.patience} evaluations "
          "(train.patience)")
    log(f"trained {completed} steps; next: {next_command}")


def count_evaluations_since_best(config: ConfigDict, checkpoints: Checkpoints, step: int) -> int:
  """Returns how many evaluations on val up to `step` followed the best one, which is always kept."""
  best = find_best_step(checkpoints.scores, config.train.best_metric)
  return 0 if best is None else step // config.train.eval_every - best // config.train.eval_every


def open_or_create_workdir(workdir: str, config: ConfigDict, log: Callable[[str], None],
                           origin: Origin | None = None) -> Workdir:
  """Creates the workdir, or opens it; `host0_then_others` runs this on host 0 first.

  Logs a line if the run is extended (`train.num_steps` was raised) and its learning rates change.

  Args:
    origin: the run that a new one starts from, see `create_workdir`.

  Raises:
    UserError: see `create_workdir`; or a host other than 0 doesn't see it.
  """
  config_path, saved_config = absolute_path(workdir) / "config.json", None
  if config_path.exists():
    saved_config = read_config(config_path, log=lambda line: None)
  elif jax.process_index() > 0:
    raise UserError(f"host {jax.process_index()} doesn't see {workdir}, which host 0 created: it must be on a disk "
                    "that all hosts share, or in a bucket (gs://)")
  work = create_workdir(workdir, config, log, origin)
  if (saved_config is not None and config.train.num_steps > saved_config.train.num_steps
      and schedule_depends_on_length(config)):
    log(f"optimizer.schedule={config.optimizer.schedule} depends on train.num_steps: from here on the learning rates "
        f"are those of {config.train.num_steps} steps, so the result differs from a run of that length from the start")
  return work


def check_own_functions(config: ConfigDict) -> None:
  """Imports the user's own schedule and loss term, so that a wrong name stops the run before any work.

  Raises:
    UserError: there is no such function.
  """
  for field, name in (("optimizer.schedule", config.optimizer.schedule), ("train.loss_term", config.train.loss_term)):
    if is_import_name(name):
      load_by_name(field, name)


def load_initial_weights(state: TrainState, work: Workdir, finding_labels: np.ndarray,
                         shardings: TrainState) -> TrainState:
  """Returns the state with the workdir's initial memory slots, pretrained encoder and parameters of another run.

  Args:
    finding_labels: labels of the training studies, int8 [n, F], which give the findings head its class weights.
  """
  params, batch_stats = dict(state.params), state.batch_stats
  if work.initial_memory is not None:
    params["memory_bank"] = params["memory_bank"] | {"slots": work.initial_memory.slots}
  if work.config.model.findings_head:
    params["findings_head"] = params["findings_head"] | {"positive_weight": compute_positive_weights(finding_labels)}
  encoder = work.encoder_variables
  if encoder and has_trained_encoder(work.config):
    pretrained = lambda collection, own: {name: encoder[collection][name] for name in own}
    params["visual_encoder"] = pretrained("params", params["visual_encoder"])     # all stages, or the last ones
    if "visual_encoder" in batch_stats:
      batch_stats = {"visual_encoder": pretrained("batch_stats", batch_stats["visual_encoder"])}
  variables = replace_variables({"params": params, "batch_stats": batch_stats}, load_initial_variables(work))
  params, batch_stats = variables["params"], variables.get("batch_stats", {})
  state = jax.tree.map(make_global_array, dataclasses.replace(state, params=params, batch_stats=batch_stats), shardings)
  if state.ema_params is None:
    return state
  # A copy, because the train step donates the parameters.
  return dataclasses.replace(state, ema_params=copy_params(state, shardings))


def copy_params(state: TrainState, shardings: TrainState):
  """Returns a copy of the parameters."""
  return jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.params)(state.params)


def make_global_array(leaf: jax.Array | np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
  """Makes a global array of an array that every host read from the same file; returns global arrays unchanged.

  `jax.device_put` would first compare the array across hosts, which takes its memory times the number of hosts.
  """
  if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
    return leaf
  array = np.asarray(leaf)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
