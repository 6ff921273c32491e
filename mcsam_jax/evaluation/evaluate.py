"""`mcsam evaluate`: a checkpoint writes the reports of a split, and they are scored beside baselines and controls.

Writes below the workdir:
  eval/SPLIT-STEP.json    the scores (see `scoring.score_reports`)
  eval/SPLIT-STEP.jsonl   a line a study: id, subject, reference, generated report, its scores, labels of both reports,
                          with `eval.explain` also why it was written (see `why.py`)
  eval/SPLIT-STEP.unscored.jsonl   the reports alone, until they are scored
  eval/SPLIT-STEP.html    both to look at, with where each word looked and what the memory recalled (see `page.py`)
  eval/constant.json      the constant report that is best on val for each metric, found once
  eval/constant-LABELER.json   likewise for micro- and macro-F1 of the findings that a labeler reads
An ensemble writes SPLIT-STEP-with-OTHER-OTHER.* into the first one's workdir, OTHER being the names of the others'.
Fields of `decode` and `eval` that differ from the workdir's config stand in the name too: SPLIT-STEP-beam_size=1.*
"""

from collections.abc import Callable, Mapping, Sequence
import json
import shutil

from etils import epath
import jax
import numpy as np

from input_pipeline.pipeline import eval_batches
from input_pipeline.splits import Split
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.workdir import open_workdir, Workdir
from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.mesh import decode_batch_size, local_rows, make_mesh
from mcsam_jax.distributed.preemption import PreemptionGuard
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.evaluation.baselines import find_constants, find_label_constants
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.evaluation.scoring import score_reports, shuffle_hypotheses
from mcsam_jax.explain.explanations import describe_slots, explain_reports, in_numbers
from mcsam_jax.explain.memory_usage import memory_slot_usage
from mcsam_jax.findings import FINDINGS
from mcsam_jax.html_report.split_page import Reasons, write_split_page
from mcsam_jax.inference.feature_cache import features_for_all, split_pooled_features
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.inference.image_embeddings import make_image_embedder
from mcsam_jax.inference.load import check_compatible, load_member, LoadedModel
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.registry import get_true_labels, make_labeler
from mcsam_jax.metrics.bootstrap import resample
from mcsam_jax.metrics.radeval import add_radeval, parse_score_names


def evaluate(workdir: str, split_name: str = "test", step: int | None = None, overrides: list[str] = (),
             ensemble: Sequence[str] = (), log=print) -> dict:
  """Writes and scores the reports of a split; returns the scores, {} on hosts other than the first.

  Args:
    step: of the checkpoint; None: the best on val.
    overrides: `--config.field=value`, for fields that don't change the model (decode, eval, mesh, data_dir).
    ensemble: further workdirs, whose models write together with this one's.

  Raises:
    UserError: a workdir holds no training, or no such step; a damaged checkpoint; models of different vocabularies.
    Preempted: SIGTERM or Ctrl-C on any host; of what it makes the reports alone may stand, in *.unscored.jsonl.
  """
  works = [open_workdir(path, overrides, multihost.log_on_host0(log)) for path in (workdir, *ensemble)]
  check_compatible(works)
  work = works[0]
  config, tokenizer = work.config, work.tokenizer
  split, train = work.open_split(split_name), work.open_split("train")
  mesh = make_mesh(config)
  labeler = make_labeler(config)
  parse_score_names(config.eval.radeval)                      # what it needs is missed now, not when all is written
  with Watchdog(config.train.watchdog_timeout_minutes) as watchdog, PreemptionGuard() as stop:
    log = watchdog.beat_on_log(multihost.log_on_host0(log))

    # The model, or several.
    features, train_features = (features_for_all(work, each, stop, watchdog, log) for each in (split, train))
    with jax.set_mesh(mesh):
      members = [load_member(each, mesh, split, step, log) for each in works]

      # Its reports, each written once by all hosts together.
      of = "the checkpoint" if len(members) == 1 else f"{len(members)} models, the first"
      log(f"writing {len(split)} reports with {of} of step {members[0].step}, {config.decode.search}")
      write = ReportGenerator([member.model for member in members], config, tokenizer, mesh, config.decode.search,
                           train.reports)
      size = decode_batch_size(config, mesh.shape)
      of_split = lambda phase, of=split, seen=features: watchdog.beat_each(stop.check_before_each(
          eval_batches(of, tokenizer, config, size, seen, batch_slice=local_rows(mesh, size))), phase)
      written = write([member.variables for member in members], of_split("writing reports"))
      unscored = file_of(works, split, members[0].step, "unscored.jsonl")
      multihost.run_on_host0(lambda: write_table(unscored, split, written))

      # What else is asked of the model: for baselines by its own eyes, of its memory, and why.
      own_pooled = make_image_embedder(members[0], config, mesh)
      own = {"split": own_pooled(of_split("pooling what it sees"), len(split)),
             "train": own_pooled(of_split("pooling the training images", train, train_features), len(train))}
      slots = memory_slot_usage(members[0].model, config, tokenizer.eos_id, members[0].variables, mesh,
                              of_split("asking the memory")) if config.model.use_memory else None
      reasons = None
      if config.eval.explain or (config.eval.html_report and (config.eval.html_report_restricted or not config.data.restricted)):
        log("asking why: where each word looked, and what the memory recalled")
        reasons = Reasons(explain_reports(members[0], config, tokenizer, mesh, of_split("explaining reports"), written,
                                          train.reports),
                          describe_slots(members[0], config, tokenizer, work.bank, mesh))

    # Their scores, which one host computes.
    stop.check()
    with watchdog.paused_unless_host0(), watchdog.watch_cpu("scoring"):
      return multihost.run_on_host0(lambda: score(works, members, split, written, own, slots, reasons, labeler, log),
                                 context=stop.immediate) or {}


def score(works: Sequence[Workdir], members: Sequence[LoadedModel], split: Split, written: Sequence[GeneratedReport],
          own: Mapping[str, np.ndarray], slots: dict | None, reasons: Reasons | None, labeler: Labeler | None,
          log) -> dict:
  """Scores the reports that the members wrote for a split, and writes both to the first workdir; returns the scores."""
  work, step = works[0], members[0].step
  config, tokenizer, train = work.config, work.tokenizer, work.open_split("train")
  hypotheses = [report.text for report in written]
  scores, rows, labels = score_reports(
      ids=split.ids, references=split.reports, hypotheses=hypotheses,
      shuffled_hypotheses=shuffle_hypotheses(hypotheses, config.eval.num_permutations, config.eval.seed),
      train_reports=train.reports,
      initial_features={"train": split_pooled_features(work, train, log), "split": split_pooled_features(work, split, log)}, model_features=own,
      constants=constant_reports(work, labeler, log), tokenizer=tokenizer, cleaning=config.data.cleaning,
      max_length=config.tokenizer.max_length, labeler=labeler,
      reference_labels=get_true_labels(labeler, config, split),
      restricted=config.data.restricted, seed=config.eval.seed,
      subjects=subjects_of(split), train_subjects=subjects_of(train))
  scores = {"split": split.name, "step": step,
            "models": [{"workdir": member.workdir, "step": member.step} for member in members],
            "pretraining_data": work.pretraining_data, "decode": config.decode.to_dict(),
            "labeler": labeler.name if labeler else "none", **scores}
  if config.eval.radeval:
    add_radeval(scores, rows, parse_score_names(config.eval.radeval), split.reports, hypotheses,
                resample(subjects_of(split), config.eval.seed), log)
  if slots is not None:
    scores["memory_slot_usage"] = slots

  # Files: written whole or not at all.
  target, table, page = (file_of(works, split, step, kind) for kind in ("json", "jsonl", "html"))
  known = [{"scores": row, "labels": labels and labels[number]} for number, row in enumerate(rows)]
  if config.eval.explain:
    train_ids = train.ids
    for row, why in zip(known, reasons.whys):
      row["why"] = in_numbers(why, reasons.slots, train_ids)
  write_table(table, split, written, known)
  if config.eval.html_report:
    write_split_page(page, work, split, step, written, scores, rows, reasons, labels=labels,
                     findings=labeler.findings if labeler else FINDINGS)
  atomic_write(target, json.dumps(scores, indent=2) + "\n")                        # last: with scores all is there
  file_of(works, split, step, "unscored.jsonl").unlink(missing_ok=True)
  log(format_table(scores))
  log(f"scores: {target}, a line a study: {table}" + (f", to look at: {page}" if config.eval.html_report else ""))
  return scores


def subjects_of(split: Split) -> list[str]:
  """Returns the subject of each record; without one a record is a subject of its own."""
  return [record["subject_id"] or record["id"] for record in split.metadata]


def file_of(works: Sequence[Workdir], split: Split, step: int, kind: str) -> epath.Path:
  """Returns where a result goes: its name tells what it is of, and `kind` what it is."""
  others = ["with", *(other.path.name for other in works[1:])] if len(works) > 1 else []
  return works[0].path / "eval" / f"{'-'.join([split.name, str(step), *others, *works[0].inference_overrides])}.{kind}"


def write_table(path: epath.Path, split: Split, written: Sequence[GeneratedReport], known: Sequence[dict] | None = None) -> None:
  """Writes a line a study, with what is `known` of each report; before scoring, so that no report can be lost, nothing."""
  lines = [{"id": name, "subject": subject, "reference": reference, "generated": report.text,
            "log_prob": report.log_prob, **more}
           for name, subject, reference, report, more in zip(split.ids, subjects_of(split), split.reports, written,
                                                             known or [{}] * len(written))]
  atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines))


def constant_reports(work: Workdir, labeler: Labeler | None, log=print) -> dict:
  """Returns the constant baselines, found on val the first time and then read from the workdir."""
  train, val, config = work.open_split("train"), work.open_split("val"), work.config
  prepared = train.reports, val.reports, work.tokenizer, config.data.cleaning, config.tokenizer.max_length

  def kept(name: str, find: Callable[[], dict], complete: Callable[[dict], bool] = bool) -> dict:
    path = work.path / "eval" / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else None
    if not found or not complete(found):
      found = find()
      atomic_write(path, json.dumps(found, indent=2) + "\n")
    return found

  def of_metrics() -> dict:
    log("looking for the constant report that is best on val, for each metric (once)")
    return find_constants(*prepared)

  def of_labels() -> dict:
    return find_label_constants(*prepared, labeler, get_true_labels(labeler, config, val))

  found = kept("constant", of_metrics, lambda known: known["METEOR"] or not shutil.which("java"))   # it has come since
  return found | kept(f"constant-{labeler.name}", of_labels) if labeler else found
