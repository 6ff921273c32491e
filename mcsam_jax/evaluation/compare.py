"""`mcsam compare`: is A better than B? Paired differences with intervals, on the same studies, over one or more seeds.

An arm is one or more runs of the same model that differ in their seed; its score is the mean over its runs. Two things
are random, and both are resampled 1,000 times: the patients (subjects with replacement, the same ones for both arms)
and the trained seeds (an arm's runs with replacement, within each resample of subjects). Resampled means of k runs are
spread by sqrt(k / (k - 1)) around their center, because k draws from k runs vary less than k new trainings would (Rao
and Wu, JASA 1988). Arms with equally many runs draw them in pairs, first with first: right where they share their
seeds, and harmless where they don't. With a single run the seed of an arm is taken as given, and a note says so.

Shapes: B studies, R resamples, k runs of an arm.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math

import numpy as np

from input_pipeline.tokenizer import load_tokenizer, WordTokenizer
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.compare_table import format_comparison
from mcsam_jax.evaluation.report_files import (
  match_studies,
  read_reports,
  read_stored_labels,
  ReportTable,
  warn_of_copies,
)
from mcsam_jax.evaluation.score_files import check_preparation, make_labeler
from mcsam_jax.evaluation.scorer import mean_nlg_score, Scorer
from mcsam_jax.files.home import expand_home
from mcsam_jax.files.outputs import check_output
from mcsam_jax.files.untrusted import read_json
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.bootstrap import (
  LEVEL,
  map_leaves,
  ONE_SUBJECT_NOTE,
  replace_nan_with_zero,
  resample,
  ScoreFn,
  subtract,
  summarize_differences,
)
from mcsam_jax.metrics.clinical_f1 import aggregate_clinical_f1
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.radeval import make_mean_score

ReadTable = Callable[[str, str], ReportTable]       # (path, role) -> the reports of a file


def compare(a: Sequence[str], b: Sequence[str], *, references: str | None = None, train: str | None = None,
            split: str = "test", protocol: str | None = None, labeler: str | None = None, cleaning: str | None = None,
            threshold: int | None = None, max_length: int | None = None, seed: int = 0, json_path: str | None = None,
            prediction_field: str | None = None, reference_field: str | None = None, id_field: str | None = None,
            log=print) -> dict:
  """Compares two arms; returns {"a", "b", "a_minus_b", ...}, ready for JSON.

  Args:
    a, b: the files of each arm's runs: eval/SPLIT-STEP.jsonl of workdirs, or predictions as `report_files` reads them.
    references: a file; None: the prediction files hold them. Subjects come from the references, else from the first
      run that has any.
    train: training reports, for the vocabulary of r2gen where no workdir has it.
    split: which split of an annotation.json holds the references.
    protocol: r2gen | clean | raw; None: r2gen if the vocabulary is known, else clean.
    labeler: stored (in the files) | rules | none; None: stored if all files hold labels and the references that
      these were read from, else rules.
    cleaning, threshold, max_length: as for `score_files`; None: the values that all runs were evaluated with, else
      R2Gen's for IU X-Ray.
    seed: of the resampling.
    json_path: where the comparison is written.
    prediction_field, reference_field, id_field: the fields of texts and ids, in all files; None: as `report_files`
      finds them.

  Raises:
    UserError: files can't be used, are about different studies, or have different references.
  """
  check_output("--json", json_path or "", '"a_minus_b":')

  def read_table(path: str, role: str) -> ReportTable:
    return read_reports(path, role, split, prediction_field if role == "predictions" else reference_field, id_field)

  result_path = json_path and expand_home(json_path)

  # The runs of both arms, and how their references are prepared and labeled.
  runs = [read_table(path, "predictions") for path in (*a, *b)]
  arm_sizes = [len(a), len(b)]
  reference_table = _read_references(runs[0], references, read_table)
  orders = [match_studies(reference_table, run) if references else _match_run(reference_table, run, read_table)
            for run in runs]
  evaluated = _find_evaluated_values(runs, {"cleaning": cleaning, "max_length": max_length})
  cleaning, threshold, max_length = check_preparation(evaluated["cleaning"], threshold, evaluated["max_length"])
  tokenizer = _find_tokenizer(runs, train, cleaning, threshold, reference_table.texts)
  protocol = protocol or ("r2gen" if tokenizer else "clean")
  if protocol == "r2gen" and not tokenizer:
    raise UserError("--protocol r2gen needs one vocabulary for all runs: give --train, or choose clean")
  if labeler is None:
    labeler = "stored" if not references and all(read_stored_labels(run.rows[0]) for run in runs) else "rules"
  if labeler == "stored":
    if references:
      _check_stored_labels(reference_table, runs, orders, read_table)
    report_labeler, reference_labels = _make_stored_labeler(runs, orders)
  else:
    report_labeler, reference_labels = make_labeler(labeler), None

  # The score of each run, as a function of study weights.
  with Meteor() as meteor:
    meteor.start()
    scorer = Scorer(reference_table.texts, tokenizer=tokenizer, cleaning=cleaning, max_length=max_length, meteor=meteor,
                    labeler=report_labeler, reference_labels=reference_labels)
    stored_scores = [{}] * len(runs) if references else _read_stored_scores(runs, orders)
    scores = [_score_run(scorer, protocol, [run.texts[row] for row in order], stored)
              for run, order, stored in zip(runs, orders, stored_scores)]

  # Points from all studies and runs; intervals from resampled subjects and runs.
  run_subjects = ([run.subjects[row] for row in order] for run, order in zip(runs, orders) if run.subjects)
  subjects = (reference_table.subjects or next(run_subjects, None) or reference_table.ids or
              reference_table.locations)
  weights, ones = resample(subjects, seed), np.ones((1, len(scorer)))
  arms = scores[:arm_sizes[0]], scores[arm_sizes[0]:]
  run_points = [[replace_nan_with_zero(score(ones)) for score in arm] for arm in arms]
  points = [_mean_over_runs(run_scores, np.full((1, len(run_scores)), 1 / len(run_scores)))
            for run_scores in run_points]
  samples = [_mean_over_runs([score(weights) for score in arm], run_weights)
             for arm, run_weights in zip(arms, resample_runs(arm_sizes, len(weights), seed))]
  notes = {**scorer.notes, **_note_seeds(arm_sizes), **({} if len(weights) else {"intervals": ONE_SUBJECT_NOTE})}
  notes |= reference_table.notes
  for run, order in zip(runs, orders):
    notes |= run.notes | warn_of_copies(reference_table, run, order)
  result = {
      **{name: {"files": list(map(str, paths)), **_to_floats(mean), "runs": [_to_floats(run)["nlg"] for run in by_run]}
         for name, paths, mean, by_run in zip("ab", (a, b), points, run_points)},
      "a_minus_b": summarize_differences(subtract(*points), subtract(*samples)),
      "num_studies": len(scorer), "num_subjects": len(set(subjects)), "protocol": protocol, "cleaning": cleaning,
      "max_length": max_length, "labeler": labeler, "level": LEVEL, "num_samples": len(weights),
      "fields": {"references": reference_table.text_field, "predictions": [run.text_field for run in runs]},
      "support": _count_support(scorer), "notes": notes}
  log(format_comparison(result))
  if result_path:
    atomic_write(result_path, json.dumps(result, indent=2) + "\n")
    log(f"comparison: {result_path}")
  return result


def _read_references(first_run: ReportTable, path: str | None, read_table: ReadTable) -> ReportTable:
  """Returns the references from the file at `path`, or else from the file of the first run."""
  if path:
    return read_table(path, "references")
  try:
    references = read_table(first_run.path, "references")
  except UserError as error:
    raise UserError(f"{error}; or give the references with --references") from error
  if references.text_field == first_run.text_field:
    raise UserError(f"{first_run.path} holds predictions (in its field {references.text_field}) but no references: "
                    "give them with --references")
  return references


def _match_run(references: ReportTable, run: ReportTable, read_table: ReadTable) -> list[int]:
  """Returns the row of `run` for each study of the first run, which must have the same references."""
  if references.ids and run.ids:
    first_ids, run_ids = set(references.ids), set(run.ids)
    if first_ids != run_ids:
      raise UserError(f"{references.path} and {run.path} are about different studies: {len(first_ids - run_ids)} are "
                      f"only in the first and {len(run_ids - first_ids)} only in the second; evaluate both on the same "
                      "split")
  order = match_studies(references, run)
  differing = _find_differing(references, run, order, read_table)
  if differing:
    raise UserError(f"{references.path} and {run.path} have different references for {len(differing)} of {len(order)} "
                    f"studies (the first: {differing[0]} of the former): give one file for both with --references")
  return order


def _find_differing(references: ReportTable, run: ReportTable, order: Sequence[int], read_table: ReadTable
                    ) -> list[str]:
  """Returns the locations of references that differ from those in the file of `run`."""
  run_references = read_table(run.path, "references").texts
  return [location for location, text, row in zip(references.locations, references.texts, order)
          if text != run_references[row]]


def _find_evaluated_values(runs: Sequence[ReportTable], requested: Mapping) -> dict:
  """Returns the requested values; for those that are None the values that all runs were evaluated with, else None.

  Raises:
    UserError: runs were evaluated with different values.
  """
  by_run, chosen = [_read_preparation(run.path) for run in runs], {}
  for name, value in requested.items():
    values = list(dict.fromkeys(preparation[name] for preparation in by_run if preparation))
    if value is None and len(values) > 1:
      raise UserError(f"the runs were evaluated with different values of {name} ({', '.join(map(str, values))}): "
                      f"choose one for all with --{name.replace('_', '-')}")
    chosen[name] = next(iter(values), None) if value is None else value
  return chosen


def _read_preparation(path: str) -> Mapping:
  """Returns how `mcsam evaluate` prepared the references of a run, {} for files that it didn't write."""
  scores_path = expand_home(path).with_suffix(".json")
  try:
    preparation = read_json(scores_path)["preparation"] if scores_path.exists() else {}
    return ({"cleaning": str(preparation["cleaning"]), "max_length": int(preparation["max_length"])}
            if preparation else {})
  except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
    return {}


def _find_tokenizer(runs: Sequence[ReportTable], train: str | None, cleaning: str, threshold: int,
                    references: Sequence[str]):
  """Returns the tokenizer of the protocol r2gen, trained on the training reports or loaded from the runs' workdirs.

  None where a run has no workdir, or where the workdirs' vocabularies turn the references into different texts.
  """
  if train:
    return WordTokenizer.train(read_reports(train, "references", "train").texts, cleaning, threshold, False)
  folders = [expand_home(run.path).parent.parent / "tokenizer" for run in runs]
  if not all((folder / "tokenizer.json").exists() for folder in folders):
    return None
  first, *others = map(load_tokenizer, dict.fromkeys(folders))
  decode_references = lambda tokenizer: [tokenizer.decode(tokenizer.encode(text)) for text in references]
  return first if all(decode_references(first) == decode_references(other) for other in others) else None


def _check_stored_labels(references: ReportTable, runs: Sequence[ReportTable], orders: Sequence[Sequence[int]],
                         read_table: ReadTable) -> None:
  """Refuses stored labels that were read from other references than the given ones."""
  for run, order in zip(runs, orders):
    if differing := _find_differing(references, run, order, read_table):
      raise UserError(f"the labels in {run.path} were read from other references than those of {references.path} for "
                      f"{len(differing)} of {len(order)} studies (the first: {differing[0]} of the latter): choose "
                      "--labeler rules")


def _make_stored_labeler(runs: Sequence[ReportTable], orders: Sequence[Sequence[int]]
                         ) -> tuple[Labeler, list[Mapping[str, str]]]:
  """Returns a labeler that looks up the stored labels of generated reports, and the labels of the B references.

  Raises:
    UserError: a row has no labels, or two files have different labels for the same report.
  """
  by_report, by_study = {}, {}
  for run, order in zip(runs, orders):
    for study, row in enumerate(order):
      labels, location = read_stored_labels(run.rows[row]), f"{run.path} {run.locations[row]}"
      if labels is None:
        raise UserError(f"{location}: no labels as `mcsam evaluate` stores them; evaluate the model again, or choose "
                        "--labeler rules")
      for known, key, side in ((by_report, run.texts[row], labels["generated"]),
                               (by_study, study, labels["reference"])):
        if known.setdefault(key, side) != side or side.keys() != by_study.get(0, side).keys():
          raise UserError(f"{location}: its labels differ from those stored elsewhere for the same report, or are "
                          "about other findings, so they come from different labelers; choose --labeler rules")
  labeler = Labeler.from_function("stored", tuple(by_study[0]), by_report.__getitem__)
  return labeler, [by_study[study] for study in range(len(by_study))]


def _read_stored_scores(runs: Sequence[ReportTable], orders: Sequence[Sequence[int]]) -> list[dict[str, np.ndarray]]:
  """Returns for each run the per-study scores [B] that all files hold in addition to our own metrics (RadEval's)."""
  if not all(isinstance(row.get("scores"), Mapping) for run in runs for row in run.rows):
    return [{}] * len(runs)
  by_run = [[run.rows[row]["scores"] for row in order] for run, order in zip(runs, orders)]
  is_score = lambda value: value is None or isinstance(value, (int, float))
  names = [name for name in by_run[0][0] if name not in METRICS and all(name in rows[0] for rows in by_run)
           and all(is_score(scores.get(name)) for rows in by_run for scores in rows)]
  return [{name: np.array([scores.get(name) for scores in rows], float) for name in names} for rows in by_run]


def _score_run(scorer: Scorer, protocol: str, hypotheses: Sequence[str], stored: Mapping[str, np.ndarray]) -> ScoreFn:
  """Returns {"nlg", "radeval", "labels"} of one run as a function of study weights [R, B]."""
  nlg_scores = scorer.score_nlg(protocol, hypotheses)
  if nlg_scores.stats is None:
    raise UserError(f"--protocol {protocol}: {scorer.notes[protocol]}")
  nlg, radeval, label_counts = mean_nlg_score(nlg_scores), make_mean_score(stored), scorer.count_labels(hypotheses)
  return lambda weights: {"nlg": nlg(weights), "radeval": radeval(weights),
                          "labels": label_counts and aggregate_clinical_f1(label_counts, weights)}


def _mean_over_runs(run_scores: Sequence[Mapping], run_weights: np.ndarray) -> dict:
  """Returns the mean of k runs' scores, nested dicts of arrays [R], weighted by [R, k]."""
  def mean(*arrays):
    return None if any(array is None for array in arrays) else (np.stack(arrays, 1) * run_weights).sum(1)
  return map_leaves(mean, *run_scores)


def _to_floats(scores: Mapping) -> dict:
  """Returns nested dicts of floats from arrays of one element."""
  return map_leaves(lambda array: None if array is None else float(array[0]), scores)


def _count_support(scorer: Scorer) -> dict[str, int]:
  """Returns how many references have each finding, not counting uncertain ones."""
  return {finding: sum(labels[finding] == "positive" for labels in scorer.reference_labels)
          for finding in scorer.findings} if scorer.reference_labels else {}


def _note_seeds(arm_sizes: Sequence[int]) -> dict[str, str]:
  """Returns a note for each arm that has too few runs for exact intervals."""
  notes = {}
  for name, size in zip("AB", arm_sizes):
    if size == 1:
      notes[f"seeds of {name}"] = "a single run: the intervals don't include the variation between seeds"
    elif size < 5:
      notes[f"seeds of {name}"] = f"only {size} runs: the intervals are still somewhat too narrow"
  return notes


def resample_runs(arm_sizes: Sequence[int], num_samples: int, seed: int) -> list[np.ndarray]:
  """Returns run weights [R, k] for each arm: how much each of its runs counts in each resample; rows sum to 1."""
  weights = []
  for arm, k in enumerate(arm_sizes):
    # Separate from the stream that draws subjects; the same one for both arms if they have equally many runs.
    rng = np.random.default_rng([seed, 1, 0 if len(set(arm_sizes)) == 1 else arm])
    frequencies = rng.multinomial(k, np.full(k, 1 / k), num_samples) / k
    weights.append(1 / k + math.sqrt(k / (k - 1)) * (frequencies - 1 / k) if k > 1 else frequencies)
  return weights
