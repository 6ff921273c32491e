"""Trains MCSAM; reads top to bottom in the order in which things happen.

Everything that decides a run is in its config: with the same config, the state
after step k is the same whether the run was interrupted or not.
"""

import contextlib
import functools
import time

from clu import metric_writers
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.pipeline import Split, eval_batches, make_batch, train_batches
from mcsam_jax.config import absolute
from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.evaluation.generate import ReportWriter
from mcsam_jax.evaluation.nlg import nlg_scores
from mcsam_jax.evaluation.protocols import apply_protocol
from mcsam_jax.training import hosts
from mcsam_jax.training.checkpoint import Checkpoints, abstract
from mcsam_jax.training.preemption import STEPS_AHEAD, Stop
from mcsam_jax.training.sharding import host_rows, make_mesh, on_mesh, replicated, state_sharding
from mcsam_jax.training.step import init_state, make_eval_step, make_model, make_train_step
from mcsam_jax.training.workdir import Workdir, claim, create_workdir


def train(config: ConfigDict, workdir: str, show=print) -> None:
  """Trains a model in `workdir`, from its latest checkpoint where there is one; on all hosts that were joined.

  Raises:
    UserError: anything the user can put right, before any training.
    Preempted: SIGTERM or Ctrl-C on any host; the last step done is saved.
  """
  show = hosts.only_first(show)
  mesh = make_mesh(config)
  show(f"{jax.device_count()} x {jax.devices()[0].device_kind} on {jax.process_count()} host(s), "
       f"mesh {dict(mesh.shape)}")
  with Stop() as stop:
    work = hosts.first_then_others(lambda: open_or_create(workdir, config, show))
    with hosts.on_first_host(lambda: claim(work.path)) or contextlib.nullcontext():
      run(work, mesh, stop, show)


def open_or_create(workdir: str, config: ConfigDict, show) -> Workdir:
  """Returns the workdir; host 0 makes it."""
  if jax.process_index() > 0 and not (absolute(workdir) / "config.json").exists():
    raise UserError(f"host {jax.process_index()} doesn't see {workdir}, which host 0 made: it must be on a disk that "
                    "all hosts share, or in a bucket (gs://)")
  return create_workdir(workdir, config, show)


def run(work: Workdir, mesh: jax.sharding.Mesh, stop: Stop, show) -> None:
  """Trains in an open workdir that no other run has claimed."""
  # Data, memory, pretrained encoder.
  config = work.config
  train_split, val_split = work.split("train"), work.split("val")
  tokenizer, eos_id = work.tokenizer, work.tokenizer.eos_id
  show(f"{len(train_split)} studies to train on, {len(val_split)} in val, {tokenizer.vocab_size} words")
  train_features, val_features = (features_for_all(work, split, stop, show) for split in (train_split, val_split))

  # Model and state, initialised under jit straight into their sharding.
  model = make_model(config, tokenizer.vocab_size, work.grid)
  sample = make_batch(train_split, np.zeros(1, np.int64), np.zeros(1, np.int64), tokenizer, config,
                      train_features)
  start = functools.partial(init_state, model, config, sample)
  shardings = state_sharding(mesh, jax.eval_shape(start))
  state = jax.jit(start, out_shardings=shardings)()
  state = with_pretrained(state, work, shardings)
  show(f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.1f} M parameters")

  # Go on where the last run stopped.
  checkpoints = Checkpoints(work.path, config.train.keep_last, config.train.best_metric)
  place = lambda step: {"examples": step * config.train.batch_size, "seed": config.seed, "records": len(train_split)}
  saved = checkpoints.restore_latest(abstract(jax.eval_shape(start), shardings), show)
  if saved is not None:
    state = saved
    checkpoints.check_place(int(state.step), place(int(state.step)))
    show(f"resumed at step {int(state.step)}")
  first_step, last = int(state.step), config.train.num_steps
  due = lambda step: step == last or step % config.train.eval_every == 0
  whole = not first_step or not due(first_step) or checkpoints.scores.get(first_step)   # else stopped in a look at val

  if first_step >= last and whole:
    show(f"already trained for {first_step} steps; next: mcsam evaluate --workdir {work.path} --split test")
    return checkpoints.close()

  # Steps, compiled at their first call.
  train_step = jax.jit(make_train_step(model, config, eos_id), donate_argnums=0,
                       out_shardings=(shardings, replicated(mesh)))
  look_at_val = Validation(model, config, tokenizer, mesh, val_split, val_features, train_split.reports, stop)
  writer = metric_writers.create_default_writer(
      work.path / "logs", just_logging=jax.process_index() > 0, asynchronous=False)
  progress = Progress(config, first_step, show)

  def look_and_save(step: int) -> None:
    scores = look_at_val(state.variables)
    writer.write_scalars(step, {f"val/{name}": value for name, value in scores.items()})
    show("  val  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    checkpoints.save(step, state, scores, place(step))

  batches = train_batches(train_split, tokenizer, config, first_step, last - first_step, train_features,
                          host_rows(config.train.batch_size))
  step = first_step
  with stop.after_steps():
    try:
      if not whole:
        look_and_save(first_step)
      for step, batch in enumerate(stop.between(on_mesh(mesh, batches), ahead=STEPS_AHEAD), first_step + 1):
        state, metrics = train_step(state, batch)
        if step % config.train.log_every == 0 or step == last:
          metrics = {name: float(value) for name, value in metrics.items()}
          writer.write_scalars(step, {f"train/{name}": value for name, value in metrics.items()})
          writer.write_scalars(step, progress.line(step, metrics))
        if due(step):
          look_and_save(step)
          progress.restart_clock(step)
        elif config.train.checkpoint_every and step % config.train.checkpoint_every == 0:
          checkpoints.save(step, state, {}, place(step))
    except Preempted:
      if step > first_step:
        checkpoints.save(step, state, {}, place(step))
      checkpoints.close()
      writer.close()
      show(f"stopped at step {step}/{last}, saved; the same command goes on from there")
      raise
    writer.close()
    checkpoints.close()
  show(f"trained {last} steps; next: mcsam evaluate --workdir {work.path} --split test")


def features_for_all(work: Workdir, split: Split, stop: Stop, show) -> np.ndarray | None:
  """Returns the cached features of a split; host 0 computes them where all hosts share a disk."""
  if "://" in work.config.data.data_dir:           # then each host keeps its own
    return work.features(split, show)
  return hosts.first_then_others(lambda: work.features(split, show), within=stop.at_once)


def with_pretrained(state, work, shardings):
  """Returns the state with the memory's slots and the encoder's weights that the workdir holds."""
  params, batch_stats = dict(state.params), state.batch_stats
  if work.bank is not None:
    params["memory_bank"] = params["memory_bank"] | {"slots": work.bank.slots}
  if work.encoder_variables and not work.config.encoder.frozen:
    params["visual_encoder"] = work.encoder_variables["params"]
    batch_stats = {"visual_encoder": work.encoder_variables["batch_stats"]}
  state = jax.device_put(state.replace(params=params, batch_stats=batch_stats), shardings)
  if state.average is None:
    return state
  copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.average)
  return state.replace(average=copy(state.params))


class Validation:
  """Val loss over the whole split, and scores of the reports written for its first studies."""

  def __init__(self, model, config, tokenizer, mesh, split, features, train_reports, stop):
    self.config, self.tokenizer, self.mesh, self.split, self.features = config, tokenizer, mesh, split, features
    self.stop = stop
    self.eval_step = jax.jit(make_eval_step(model, config, tokenizer.eos_id), out_shardings=replicated(mesh))
    self.write = ReportWriter([model], config, tokenizer, mesh, config.train.eval_search, train_reports)

  def batches(self, limit: int = 0):
    size = self.config.decode.batch_size
    return eval_batches(self.split, self.tokenizer, self.config, size, self.features, limit, host_rows(size))

  def __call__(self, variables: dict) -> dict[str, float]:
    """Returns the token loss and the scores (protocol r2gen) of the variables.

    Raises:
      Preempted: a host was asked to stop meanwhile.
    """
    batches = self.stop.between(on_mesh(self.mesh, self.batches()), ahead=STEPS_AHEAD)
    sums = [self.eval_step(variables, batch) for batch in batches]
    loss, tokens = np.sum(jax.device_get(sums), axis=0)
    written = self.write([variables], self.stop.between(self.batches(self.config.train.eval_studies)))
    self.stop.check()
    reports = self.split.reports
    references, hypotheses = apply_protocol(
        "r2gen", [reports[report.record] for report in written], [report.text for report in written],
        self.tokenizer, self.config.data.cleaning, self.config.tokenizer.max_length)
    scores = nlg_scores(references, hypotheses, metrics=("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr")).corpus
    return {"token_loss": float(loss / tokens), **scores, "distinct_reports": len(set(hypotheses))}


class Progress:
  """Step time, throughput and time left, by the clock of this host."""

  def __init__(self, config: ConfigDict, step: int, show):
    self.config, self.show = config, show
    self.restart_clock(step)

  def restart_clock(self, step: int) -> None:
    self.since, self.clock = step, time.monotonic()

  def line(self, step: int, metrics: dict) -> dict[str, float]:
    """Shows a line and returns its figures; the clock starts again."""
    seconds = (time.monotonic() - self.clock) / (step - self.since)
    left = seconds * (self.config.train.num_steps - step)
    rate = self.config.train.batch_size / seconds
    align = f"  align {metrics['align_loss']:.3f}" if "align_loss" in metrics else ""
    self.show(f"step {step}/{self.config.train.num_steps}  loss {metrics['loss']:.3f}  "
              f"token {metrics['token_loss']:.3f}{align}"
              f"  {1000 * seconds:.0f} ms/step  {rate:.0f} examples/s  {left / 60:.1f} min left")
    self.restart_clock(step)
    return {"seconds_per_step": seconds, "examples_per_second": rate}
