"""Trains MCSAM; reads top to bottom in the order in which things happen.

Everything that decides a run is in its config: with the same config, the state
after step k is the same whether the run was interrupted or not.
"""

import contextlib
import functools

from clu import metric_writers
import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.pipeline import eval_batches, make_batch, train_batches
from mcsam_jax.benchmark.chips import chip_of
from mcsam_jax.evaluation.generate import ReportWriter
from mcsam_jax.evaluation.nlg import nlg_scores
from mcsam_jax.evaluation.protocols import apply_protocol
from mcsam_jax.training.checkpoint import Checkpoints, abstract
from mcsam_jax.training.flops import train_flops
from mcsam_jax.training.progress import Progress
from mcsam_jax.training.sharding import host_rows, make_mesh, on_mesh, replicated, state_sharding
from mcsam_jax.training.step import init_state, make_eval_step, make_model, make_train_step
from mcsam_jax.training.watch import Watch
from mcsam_jax.training.watchdog import Watchdog
from mcsam_jax.training.workdir import Workdir, claim, create_workdir


def train(config: ConfigDict, workdir: str, show=print) -> None:
  """Trains a model in `workdir`, from its latest checkpoint where there is one.

  Raises:
    UserError: anything the user can put right, before any training.
    NonFinite: a loss or gradient was no number.
  """
  with contextlib.ExitStack() as on_exit:
    watchdog = on_exit.enter_context(Watchdog(config.train.hang_minutes))
    show = watchdog.heard(show)
    mesh = make_mesh(config)
    show(f"{jax.device_count()} x {jax.devices()[0].device_kind} on {jax.process_count()} host(s), "
         f"mesh {dict(mesh.shape)}")
    work = create_workdir(workdir, config, show)
    if jax.process_index() == 0:
      on_exit.enter_context(claim(work.path))
    run(work, mesh, show, watchdog, on_exit)


def run(work: Workdir, mesh: jax.sharding.Mesh, show, watchdog: Watchdog, on_exit: contextlib.ExitStack) -> None:
  """Trains in an open workdir that no other run has claimed."""
  # Data, memory, pretrained encoder.
  config = work.config
  train_split, val_split = work.split("train"), work.split("val")
  tokenizer, eos_id = work.tokenizer, work.tokenizer.eos_id
  show(f"{len(train_split)} studies to train on, {len(val_split)} in val, {tokenizer.vocab_size} words")
  train_features, val_features = work.features(train_split, show), work.features(val_split, show)

  # Model and state, initialised under jit straight into their sharding.
  model = make_model(config, tokenizer.vocab_size, work.grid)
  sample = make_batch(train_split, np.zeros(1, np.int64), np.zeros(1, np.int64), tokenizer, config,
                      train_features)
  start = functools.partial(init_state, model, config, sample)
  shardings = state_sharding(mesh, jax.eval_shape(start))
  state = jax.jit(start, out_shardings=shardings)()
  state = jax.device_put(with_pretrained(state, work), shardings)
  show(f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.1f} M parameters")

  # Go on where the last run stopped.
  checkpoints = Checkpoints(work.path, config.train.keep_last, config.train.best_metric)
  on_exit.callback(checkpoints.close)                     # what is being written is written, whatever ends the run
  if checkpoints.latest() is not None:
    state = checkpoints.restore(checkpoints.latest(), abstract(jax.eval_shape(start), shardings))
    show(f"resumed at step {int(state.step)}")
  first_step = int(state.step)

  if first_step >= config.train.num_steps:
    show(f"already trained for {first_step} steps; next: mcsam evaluate --workdir {work.path} --split test")
    return checkpoints.close()

  # Steps, compiled at their first call.
  train_step = jax.jit(make_train_step(model, config, eos_id), donate_argnums=0,
                       out_shardings=(shardings, replicated(mesh)))
  look_at_val = Validation(model, config, tokenizer, mesh, val_split, val_features, train_split.reports,
                           watchdog)
  writer = metric_writers.create_default_writer(
      work.path / "logs", just_logging=jax.process_index() > 0)
  chip = chip_of(jax.devices()[0].device_kind)
  progress = Progress(config, first_step, show, jax.device_count() / (chip.devices if chip else 1),
                      train_flops(config, tokenizer.vocab_size), chip.flops if chip else None)
  watch = Watch(config, work.path, first_step, len(train_split), writer, progress, watchdog)
  on_exit.callback(watch.close)

  batches = train_batches(train_split, tokenizer, config, first_step, config.train.num_steps - first_step,
                          train_features, host_rows(config.train.batch_size))
  for step, batch in watch.steps(on_mesh(mesh, batches)):
    state, metrics = train_step(state, batch)
    watch.follow(step, metrics)
    if step % config.train.eval_every == 0 or step == config.train.num_steps:
      watch.settle()                                      # nothing but a good state is looked at and saved
      scores = look_at_val(state.variables)
      writer.write_scalars(step, {f"val/{name}": value for name, value in scores.items()})
      show("  val  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
      watchdog.beat(f"saving step {step}")
      checkpoints.save(step, state, scores)
      watch.restart_clock(step)
  watchdog.beat("waiting until the last checkpoint is written")
  checkpoints.close()
  show(f"trained {config.train.num_steps} steps; next: mcsam evaluate --workdir {work.path} --split test")


def with_pretrained(state, work):
  """Returns the state with the memory's slots and the encoder's weights that the workdir holds."""
  params, batch_stats = dict(state.params), state.batch_stats
  if work.bank is not None:
    params["memory_bank"] = params["memory_bank"] | {"slots": work.bank.slots}
  if work.encoder_variables and not work.config.encoder.frozen:
    params["visual_encoder"] = work.encoder_variables["params"]
    batch_stats = {"visual_encoder": work.encoder_variables["batch_stats"]}
  average = None if state.average is None else jax.tree.map(np.array, params)
  return state.replace(params=params, batch_stats=batch_stats, average=average)


class Validation:
  """Val loss over the whole split, and scores of the reports written for its first studies."""

  def __init__(self, model, config, tokenizer, mesh, split, features, train_reports,
               watchdog: Watchdog):
    self.watchdog = watchdog
    self.config, self.tokenizer, self.mesh, self.split, self.features = config, tokenizer, mesh, split, features
    self.eval_step = jax.jit(make_eval_step(model, config, tokenizer.eos_id), out_shardings=replicated(mesh))
    self.write = ReportWriter([model], config, tokenizer, mesh, config.train.eval_search, train_reports)

  def batches(self, phase: str, limit: int = 0):
    size = self.config.decode.batch_size
    batches = eval_batches(self.split, self.tokenizer, self.config, size, self.features, limit, host_rows(size))
    return self.watchdog.each(batches, phase)

  def __call__(self, variables: dict) -> dict[str, float]:
    """Returns the token loss and the scores (protocol r2gen) of the variables."""
    sums = [self.eval_step(variables, batch) for batch in on_mesh(self.mesh, self.batches("val loss"))]
    loss, tokens = np.sum(jax.device_get(sums), axis=0)
    written = self.write([variables], self.batches("writing val reports", self.config.train.eval_studies))
    reports = self.split.reports
    references, hypotheses = apply_protocol(
        "r2gen", [reports[report.record] for report in written], [report.text for report in written],
        self.tokenizer, self.config.data.cleaning, self.config.tokenizer.max_length)
    scores = nlg_scores(references, hypotheses, metrics=("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr")).corpus
    return {"token_loss": float(loss / tokens), **scores, "distinct_reports": len(set(hypotheses))}
