"""Trains MCSAM; reads top to bottom in the order in which things happen.

Everything that decides a run is in its config: with the same config, the state after step k is the same whether the
run was interrupted or not. Its keys are a function of config.seed and the step, its records of the seed and the number
of examples seen; so a checkpoint of the state and that number is all that a run needs to go on.
"""

import contextlib
import functools

from clu import metric_writers
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.pipeline import read_batch, train_batches
from input_pipeline.token_table import load_token_table
from mcsam_jax.checkpoints.checkpoint import Checkpoints, to_shape_dtype_struct
from mcsam_jax.checkpoints.workdir import acquire_lock, create_workdir, Workdir
from mcsam_jax.config import absolute_path
from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.mesh import (
  check_train_batch_size,
  local_rows,
  make_mesh,
  replicated,
  shard_batches,
  state_shardings,
)
from mcsam_jax.distributed.preemption import PreemptionGuard, VOTE_LAG
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.hardware import detect_chip
from mcsam_jax.inference.feature_cache import features_for_all
from mcsam_jax.models.initialize import make_model
from mcsam_jax.training.flops import train_flops
from mcsam_jax.training.metrics_logger import logged, Watch
from mcsam_jax.training.throughput import Progress
from mcsam_jax.training.train_step import init_train_state, make_term_norms, make_train_step
from mcsam_jax.training.validation import check_best_metric, Validation


def train(config: ConfigDict, workdir: str, log=print) -> None:
  """Trains a model in `workdir`, from its latest checkpoint where there is one. All hosts call it.

  Raises:
    UserError: anything the user can put right, before any training.
    NonFinite: a loss or gradient was no number.
    Preempted: SIGTERM or Ctrl-C on any host; the last step done is saved.
  """
  with contextlib.ExitStack() as on_exit:
    watchdog = on_exit.enter_context(Watchdog(config.train.watchdog_timeout_minutes))
    log = watchdog.beat_on_log(multihost.log_on_host0(log))
    mesh = make_mesh(config)
    check_train_batch_size(config, mesh.shape)
    check_best_metric(config)
    log(f"{jax.device_count()} x {jax.devices()[0].device_kind} on {jax.process_count()} host(s), "
         f"mesh {dict(mesh.shape)}; {config.train.batch_size} studies a step, "
         f"{config.train.batch_size // (mesh.shape['data'] * mesh.shape['fsdp'])} on each device")
    stop = on_exit.enter_context(PreemptionGuard())
    with watchdog.paused_unless_host0():
      work = multihost.host0_then_others(lambda: open_or_create(workdir, config, log), within=stop.immediate)
    on_exit.enter_context(multihost.run_on_host0(lambda: acquire_lock(work.path, log)) or contextlib.nullcontext())
    run(work, mesh, stop, watchdog, on_exit, log)


def open_or_create(workdir: str, config: ConfigDict, log) -> Workdir:
  """Returns the workdir; host 0 makes it."""
  if jax.process_index() > 0 and not (absolute_path(workdir) / "config.json").exists():
    raise UserError(f"host {jax.process_index()} doesn't see {workdir}, which host 0 made: it must be on a disk that "
                    "all hosts share, or in a bucket (gs://)")
  return create_workdir(workdir, config, log)


def run(work: Workdir, mesh: jax.sharding.Mesh, stop: PreemptionGuard, watchdog: Watchdog, on_exit: contextlib.ExitStack,
        log) -> None:
  """Trains in an open workdir that no other run has claimed."""
  # Data, memory, pretrained encoder.
  config = work.config
  train_split, val_split = work.open_split("train"), work.open_split("val")
  tokenizer, eos_id = work.tokenizer, work.tokenizer.eos_id
  log(f"{len(train_split)} studies to train on, {len(val_split)} in val, {tokenizer.vocab_size} words")
  with watchdog.paused_unless_host0():
    for split in (train_split, val_split):                # a pass over all records the first time
      multihost.host0_then_others(lambda: load_token_table(split, tokenizer, log), within=stop.immediate)
  train_reports = train_split.read_reports(log) if config.train.eval_search == "mbr" else ()
  train_features, val_features = (features_for_all(work, split, stop, watchdog, log)
                                  for split in (train_split, val_split))

  # Model and state, initialised under jit straight into their sharding. From here on all hosts compute together.
  on_exit.enter_context(jax.set_mesh(mesh))
  model = make_model(config, tokenizer.vocab_size, work.patch_grid)
  sample = read_batch(train_split, np.zeros(1, np.int64), np.zeros(1, np.int64), tokenizer, config,
                      train_features)
  start = functools.partial(init_train_state, model, config, sample)
  shardings = state_shardings(mesh, jax.eval_shape(start))
  state = jax.jit(start, out_shardings=shardings)()
  state = with_pretrained(state, work, shardings)
  log(f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.1f} M parameters")

  # Go on where the last run stopped.
  checkpoints = Checkpoints(work.path, config.train.keep_last, config.train.best_metric)
  on_exit.callback(checkpoints.wait)                      # what is being written is written, whatever ends the run
  place = lambda step: {"examples": step * config.train.batch_size, "seed": config.seed, "records": len(train_split)}
  saved = checkpoints.restore_latest(to_shape_dtype_struct(jax.eval_shape(start), shardings), log)
  if saved is not None:
    state = saved
    checkpoints.check_data_position(int(state.step), place(int(state.step)))
    log(f"resumed at step {int(state.step)}")
  first_step, last = int(state.step), config.train.num_steps
  due = lambda step: step == last or step % config.train.eval_every == 0
  whole = not first_step or not due(first_step) or checkpoints.scores.get(first_step)   # else stopped in a look at val

  if first_step >= last and whole:
    log(f"already trained for {first_step} steps; next: mcsam evaluate --workdir {work.path} --split test")
    return checkpoints.close()

  # Steps, compiled at their first call.
  train_step = jax.jit(make_train_step(model, config, eos_id), donate_argnums=0,
                       out_shardings=(shardings, replicated(mesh)))
  term_norms = make_term_norms(model, config, eos_id, replicated(mesh))
  evaluate_val = Validation(model, config, tokenizer, mesh, val_split, val_features, train_reports, stop, watchdog)

  # What watches them.
  writer = metric_writers.create_default_writer(work.path / "logs", just_logging=jax.process_index() > 0)
  chip = detect_chip(jax.devices()[0].device_kind)
  progress = Progress(config, first_step, log, jax.device_count() / (chip.devices_per_chip if chip else 1),
                      train_flops(config, tokenizer.vocab_size), chip.flops if chip else None)
  watch = Watch(config, work.path, first_step, len(train_split), writer, progress, watchdog)
  on_exit.callback(watch.close)

  def look_and_save(step: int) -> None:
    look = evaluate_val(state.variables)
    look.write(writer, step)
    log("  val  " + "  ".join(f"{name} {value:.3f}" for name, value in look.scores.items()))
    checkpoints.save(step, state, look.scores, place(step))

  # Training.
  batches = train_batches(train_split, tokenizer, config, first_step, last - first_step, train_features,
                          local_rows(mesh, config.train.batch_size))
  done = first_step
  with stop.deferred():                                # which lasts until all is saved
    try:
      if not whole:
        look_and_save(first_step)
      for step, batch in watch.steps(shard_batches(mesh, batches)):
        stop.check(lag=VOTE_LAG)
        norms = term_norms(state, batch) if config.model.use_alignment and (
            logged(config, step) or step == first_step + 1) else {}             # compiled with the step, at the first
        state, metrics = train_step(state, batch)
        done = step
        watch.follow(step, metrics | norms)
        if due(step):
          watch.settle()                                  # nothing but a good state is looked at and saved
          look_and_save(step)
          watch.restart_clock(step)
        elif config.train.checkpoint_every and step % config.train.checkpoint_every == 0:
          watch.settle()
          checkpoints.save(step, state, {}, place(step))
    except Preempted:
      if done > first_step:
        watch.settle()
        checkpoints.save(done, state, {}, place(done))
      checkpoints.close()
      log(f"stopped at step {done}/{last}, saved; the same command goes on from there")
      raise
  watchdog.beat("waiting until the last checkpoint is written")
  checkpoints.close()
  log(f"trained {last} steps; next: mcsam evaluate --workdir {work.path} --split test")


def with_pretrained(state, work, shardings):
  """Returns the state with the memory's slots and the encoder's weights that the workdir holds."""
  params, batch_stats = dict(state.params), state.batch_stats
  if work.bank is not None:
    params["memory_bank"] = params["memory_bank"] | {"slots": work.bank.slots}
  if work.encoder_variables and not work.config.encoder.frozen:
    params["visual_encoder"] = work.encoder_variables["params"]
    batch_stats = {"visual_encoder": work.encoder_variables["batch_stats"]}
  state = jax.tree.map(on_devices, state.replace(params=params, batch_stats=batch_stats), shardings)
  if state.average is None:
    return state
  copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.average)
  return state.replace(average=copy(state.params))


def on_devices(leaf: jax.Array | np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
  """Returns an array that every host has read from the same file as a global one; a global one as it is.

  `jax.device_put` would first compare it between all hosts, which takes their number times its memory.
  """
  if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
    return leaf
  whole = np.asarray(leaf)
  return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
