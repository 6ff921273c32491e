"""`mcsam evaluate`: generates the reports of a split from a checkpoint, and scores them beside baselines and controls.

Results are written below WORKDIR/eval; `eval_files.py` lists them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import json
import threading
from typing import TYPE_CHECKING, TypeVar

import jax
import numpy as np

from input_pipeline.pipeline import eval_batches
from input_pipeline.splits import Split
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.provenance import describe_software
from mcsam_jax.checkpoints.workdir import open_workdir, Workdir
from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.mesh import decode_batch_size, local_rows, make_mesh
from mcsam_jax.distributed.preemption import PreemptionGuard
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.evaluation.eval_files import (
  list_subjects,
  load_or_find_constants,
  make_result_path,
  write_report_table,
)
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.evaluation.scoring import score_reports, shuffle_hypotheses
from mcsam_jax.explain.explanations import explain_reports, explanation_to_json
from mcsam_jax.explain.memory_usage import compute_memory_slot_usage
from mcsam_jax.explain.slots import describe_slots
from mcsam_jax.findings import FINDINGS
from mcsam_jax.html_report.split_page import ReportExplanations, write_split_page
from mcsam_jax.inference.compilation_cache import enable_compilation_cache
from mcsam_jax.inference.feature_cache import load_features_on_all_hosts, load_pooled_features
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.inference.image_embeddings import make_image_embedder
from mcsam_jax.inference.load import check_compatible, load_model, LoadedModel
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.registry import get_true_labels, make_labeler
from mcsam_jax.metrics.auc import compare_known_and_said
from mcsam_jax.metrics.bootstrap import resample
from mcsam_jax.metrics.external.manual_labels import read_manual_labels, score_manual_labels
from mcsam_jax.metrics.external.own_metrics import add_own_metrics, load_own_metrics
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.radeval import add_radeval, parse_score_names

if TYPE_CHECKING:                                       # only phantoms need the module, which draws
  from mcsam_jax.explain.pointing_game import MentionedFinding
  FindTargets = Callable[[], list[list[MentionedFinding]]]

Result = TypeVar("Result")


def evaluate(workdir: str, split_name: str = "test", step: int | None = None, overrides: Sequence[str] = (),
             ensemble: Sequence[str] = (), log=print) -> dict:
  """Generates and scores the reports of a split; returns the scores, {} on hosts other than the first.

  Args:
    workdir: of the training run.
    split_name: train | val | test.
    step: of the checkpoint; None: the best on val.
    overrides: `--config.field=value`, for fields that don't change the model (decode, eval, mesh, data_dir).
    ensemble: further workdirs, whose models generate the reports together with the first one.
    log: takes a line of progress.

  Raises:
    UserError: a workdir has no checkpoint, or not that step; a checkpoint is damaged; the models are incompatible.
    Preempted: SIGTERM or Ctrl-C on any host. Reports that were complete by then are kept in *.unscored.jsonl.
  """
  if jax.process_count() == 1:
    enable_compilation_cache()
  workdirs = [open_workdir(path, overrides, multihost.log_on_host0(log)) for path in (workdir, *ensemble)]
  check_compatible(workdirs)
  first = workdirs[0]
  config, tokenizer = first.config, first.tokenizer
  split, train = first.open_split(split_name), first.open_split("train")
  mesh = make_mesh(config)
  labeler = make_labeler(config)
  parse_score_names(config.eval.radeval)              # a missing package should fail before any report is generated
  load_own_metrics(config.eval.metrics)
  if config.eval.manual_labels:
    read_manual_labels(config.eval.manual_labels, split.ids)
  with Watchdog(config.train.watchdog_timeout_minutes) as watchdog, PreemptionGuard() as guard, Meteor() as meteor:
    log = watchdog.beat_on_log(multihost.log_on_host0(log))
    features, train_features = (load_features_on_all_hosts(first, each, guard, watchdog, log)
                                for each in (split, train))
    batch_size = decode_batch_size(config, mesh.shape)

    def make_batches(phase: str, records: Split = split, record_features: np.ndarray | None = features
                     ) -> Iterator[dict]:
      batches = eval_batches(records, tokenizer, config, batch_size, record_features,
                             rows=local_rows(mesh, batch_size))
      return watchdog.beat_each(guard.check_before_each(batches), phase)

    with jax.set_mesh(mesh):
      models = [load_model(each, mesh, step, log) for each in workdirs]
      model = models[0]

      # Generate one report per study, on all hosts together, and store them before anything else can fail.
      checkpoints = "the checkpoint" if len(models) == 1 else f"{len(models)} models, the first"
      if jax.process_index() == 0:
        meteor.start()                                # Java loads its tables while the reports are generated
      log(f"generating {len(split)} reports from {checkpoints} at step {model.step}, search {config.decode.search}")
      find_constants = lambda: load_or_find_constants(first, labeler, log, meteor)
      if jax.process_count() == 1 and config.eval.labeler != "chexbert":
        find_constants = _start_in_background(find_constants)        # mostly waits for Java
      generate = ReportGenerator([each.model for each in models], config, tokenizer, mesh, config.decode.search,
                                 train.reports)
      reports = generate([each.variables for each in models], make_batches("generating reports"))
      unscored_path = make_result_path(workdirs, split, model.step, "unscored.jsonl")
      multihost.run_on_host0(lambda: write_report_table(unscored_path, split, reports))
      explains = config.eval.explain or (
          config.eval.html_report and (config.eval.html_report_restricted or not config.data.restricted))
      find_targets = None
      if config.data.name == "phantom" and explains and jax.process_index() == 0:
        find_targets = _start_in_background(lambda: _find_targets(first, split, reports))    # draws while devices work

      # Image features for the model's own nearest-neighbor baselines, memory usage, explanations.
      embed_images = make_image_embedder(model, config, mesh)
      model_features = {
          "split": embed_images(make_batches("embedding images"), len(split)),
          "train": embed_images(make_batches("embedding training images", train, train_features), len(train))}
      slot_usage = compute_memory_slot_usage(
          model.model, config, tokenizer.eos_id, model.variables, mesh, make_batches("measuring memory usage")
      ) if config.model.use_memory else None
      explanations = None
      if explains:
        log("explaining the reports: attention of each word, memory slots, similar training reports")
        explanations = ReportExplanations(
            explain_reports(model, config, tokenizer, mesh, make_batches("explaining reports"), reports, train.reports),
            describe_slots(model, config, tokenizer, first.initial_memory, mesh))

    guard.check()
    with watchdog.paused_unless_host0(), watchdog.watch_cpu("scoring"):
      return multihost.run_on_host0(
          lambda: _score_and_write(workdirs, models, split, reports, model_features, slot_usage, explanations, labeler,
                                   find_constants(), find_targets, meteor, log),
          context=guard.immediate) or {}


def _start_in_background(function: Callable[[], Result]) -> Callable[[], Result]:
  """Calls a function in a thread that doesn't keep the program alive; returns a function that waits for its result."""
  future: futures.Future[Result] = futures.Future()

  def run() -> None:
    try:
      future.set_result(function())
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return future.result


def _score_and_write(workdirs: Sequence[Workdir], models: Sequence[LoadedModel], split: Split,
                     reports: Sequence[GeneratedReport], model_features: Mapping[str, np.ndarray],
                     slot_usage: dict | None, explanations: ReportExplanations | None, labeler: Labeler | None,
                     constants: dict, find_targets: "FindTargets | None", meteor: Meteor, log) -> dict:
  """Scores the generated reports of a split and writes all result files to the first workdir; returns the scores."""
  workdir, step = workdirs[0], models[0].step
  config, train = workdir.config, workdir.open_split("train")
  hypotheses, subjects = [report.text for report in reports], list_subjects(split)

  shuffled = shuffle_hypotheses(hypotheses, config.eval.num_permutations, config.eval.seed)
  scores, study_scores, labels = score_reports(
      ids=split.ids, references=split.reports, hypotheses=hypotheses, shuffled_hypotheses=shuffled,
      train_reports=train.reports, model_features=model_features,
      initial_features={"train": load_pooled_features(workdir, train, log),
                        "split": load_pooled_features(workdir, split, log)},
      constants=constants, tokenizer=workdir.tokenizer,
      cleaning=config.data.cleaning, max_length=config.tokenizer.max_length, labeler=labeler,
      reference_labels=get_true_labels(labeler, config, split), restricted=config.data.restricted,
      seed=config.eval.seed, subjects=subjects, train_subjects=list_subjects(train),
      meteor=meteor)
  scores = {"split": split.name, "step": step,
            "models": [{"workdir": model.workdir, "step": model.step} for model in models],
            "seeds": [each.config.seed for each in workdirs], "software": describe_software(),
            "pretraining_data": workdir.pretraining_data, "decode": config.decode.to_dict(),
            "labeler": labeler.name if labeler else "none", **scores}
  if config.eval.radeval:
    add_radeval(scores, study_scores, parse_score_names(config.eval.radeval), split.reports, hypotheses,
                resample(subjects, config.eval.seed), log)
  if config.eval.metrics:
    add_own_metrics(scores, study_scores, load_own_metrics(config.eval.metrics), split.reports, hypotheses,
                    resample(subjects, config.eval.seed))
  if slot_usage is not None:
    scores["memory_slot_usage"] = slot_usage
  known = {"samples": [report.finding_probs for report in reports if report.finding_probs is not None],
           "head": [report.head_probs for report in reports if report.head_probs is not None]}
  known = {name: probabilities for name, probabilities in known.items() if len(probabilities) == len(reports)}
  if labels and known:
    scores["known_findings"] = compare_known_and_said([each["reference"] for each in labels],
                                                      scores["labels"]["per_finding"], **known)
  if labeler and config.eval.manual_labels:
    manual, findings = read_manual_labels(config.eval.manual_labels, split.ids)
    scores["manual_labels"] = score_manual_labels(manual, [each for each in findings if each in labeler.findings],
                                                  labeler.label, split.reports, hypotheses, shuffled)
  if config.data.name == "phantom":
    scores |= _measure_on_phantoms(split, reports, explanations, find_targets)

  # Files. The scores come last, so that everything else exists once they do.
  scores_path, table_path, html_path = (make_result_path(workdirs, split, step, suffix)
                                        for suffix in ("json", "jsonl", "html"))
  results: list[dict] = [{"scores": study_scores[study], "labels": labels and labels[study]}
                         for study in range(len(reports))]
  if config.eval.explain and explanations is not None:
    train_ids = train.ids
    for result, explanation in zip(results, explanations.per_report):
      result["explanation"] = explanation_to_json(explanation, explanations.slots, train_ids)
  write_report_table(table_path, split, reports, results)
  if config.eval.html_report:
    write_split_page(html_path, workdir, split, step, reports, scores, study_scores, explanations, labels=labels,
                     findings=labeler.findings if labeler else FINDINGS)
  atomic_write(scores_path, json.dumps(scores, indent=2) + "\n")
  make_result_path(workdirs, split, step, "unscored.jsonl").unlink(missing_ok=True)
  log(format_table(scores))
  log(f"scores: {scores_path}, one line per study: {table_path}"
      + (f", HTML report: {html_path}" if config.eval.html_report else ""))
  return scores


def _find_targets(workdir: Workdir, split: Split, reports: Sequence[GeneratedReport]) -> "list[list[MentionedFinding]]":
  """Returns where the findings that the reports mention were drawn."""
  from mcsam_jax.explain.pointing_game import locate_mentioned_findings
  return locate_mentioned_findings(workdir.config.data.phantom.seed, split, [report.record for report in reports],
                                   [report.text for report in reports], workdir.patch_grid)


def _measure_on_phantoms(split: Split, reports: Sequence[GeneratedReport], explanations: ReportExplanations | None,
                         find_targets: "FindTargets | None") -> dict:
  """Returns what is known only where findings were drawn: whether details agree, and where heat maps should point."""
  from input_pipeline.datasets.phantom.attributes import compare_attributes, count_agreement
  from mcsam_jax.explain.pointing_game import play_pointing_game
  measured: dict = {"attributes": count_agreement(
      pair for report in reports for pair in compare_attributes(split.reports[report.record], report.text))}
  if explanations is not None and find_targets is not None:
    measured["pointing_game"] = play_pointing_game(find_targets(), explanations.per_report)
  return measured
