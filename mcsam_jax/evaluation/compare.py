"""`mcsam compare`: is A better than B? Paired differences with intervals, over the same studies, several seeds an arm.

An arm is one or more runs of the same model that differ in their seed; its score is the mean over its runs. Two things
are by chance, and both are drawn again 1,000 times: which patients there are (subjects with replacement, the same ones
for both arms), and which seeds were trained (an arm's runs with replacement, within each draw of subjects). The draws
of k runs are spread by sqrt(k / (k - 1)) around their mean, since k draws from k runs vary less than k new trainings
would (Rao and Wu, JASA 1988). Arms with equally many runs draw them together, first with first: right where they share
their seeds, and no wrong where they don't. With a single run an arm's seed is taken for granted, which is said.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math

from etils import epath
import numpy as np

from input_pipeline.tokenizer import load_tokenizer, WordTokenizer
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.compare_table import format_comparison
from mcsam_jax.evaluation.report_files import match, note_of_copies, read_reports, Reports, stored_labels
from mcsam_jax.evaluation.score_files import make_reader, preparation
from mcsam_jax.evaluation.scorer import nlg_of, Scorer
from mcsam_jax.findings import FINDINGS
from mcsam_jax.metrics.bootstrap import (
  differences_of,
  LEVEL,
  map_leaves,
  nothing_is_0,
  ONE_SUBJECT,
  resample,
  Score,
  subtract,
)
from mcsam_jax.metrics.clinical_f1 import label_values
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.radeval import means_of


def compare(a: Sequence[str], b: Sequence[str], *, references: str | None = None, train: str | None = None,
            split: str = "test", protocol: str | None = None, labeler: str | None = None, cleaning: str | None = None,
            threshold: int | None = None, max_length: int | None = None, seed: int = 0, json_path: str | None = None,
            prediction_field: str | None = None, reference_field: str | None = None, id_field: str | None = None,
            log=print) -> dict:
  """Compares two arms; returns {"a", "b", "a_minus_b", ...}, ready for JSON.

  Args:
    a, b: the files of each arm's runs: eval/SPLIT-STEP.jsonl of workdirs, or predictions as `report_files` reads them.
    references: a file; None: the prediction files hold them. Subjects are its own, else those of the first run that
      has any.
    train: training reports, for the vocabulary of r2gen where no workdir has it.
    split: of an annotation.json that holds the references.
    protocol: r2gen | clean | raw; None: r2gen if the vocabulary is known, else clean.
    labeler: stored (in the files) | rules | none; None: stored where all files have labels and the references that
      these were read from, else rules.
    cleaning, threshold, max_length: as for `score_files`; None: as the evaluations of all runs say, else R2Gen's for
      IU X-Ray.
    seed: of the draws.
    json_path: where the comparison is written.
    prediction_field, reference_field, id_field: that hold them, in all files; None: as `report_files` finds them.

  Raises:
    UserError: files about different studies, with different references, or at fault otherwise.
  """
  def read(path: str, role: str) -> Reports:
    return read_reports(path, role, split, prediction_field if role == "predictions" else reference_field, id_field)

  files = [[read(path, "predictions") for path in arm] for arm in (a, b)]
  runs, sizes = [run for arm in files for run in arm], [len(arm) for arm in files]
  truth = _references(runs[0], references, read)
  orders = [match(truth, run) if references else _same_studies(truth, run, read) for run in runs]
  said = _said_by_evaluations(runs, {"cleaning": cleaning, "max_length": max_length})
  cleaning, threshold, max_length = preparation(said["cleaning"], threshold, said["max_length"])
  tokenizer = _tokenizer(runs, train, cleaning, threshold, truth.texts)
  protocol = protocol or ("r2gen" if tokenizer else "clean")
  if protocol == "r2gen" and not tokenizer:
    raise UserError("--protocol r2gen needs one vocabulary for all runs: give --train, or choose clean")
  labeler = labeler or ("stored" if not references and all(stored_labels(run.rows[0]) for run in runs) else "rules")
  if labeler == "stored" and references:
    _check_labelled(truth, runs, orders, read)
  read_labels, reference_labels = _stored_labels(runs, orders) if labeler == "stored" else (make_reader(labeler), None)
  findings = tuple(reference_labels[0]) if reference_labels else FINDINGS

  with Meteor() as meteor:
    meteor.start()
    judge = Scorer(truth.texts, tokenizer=tokenizer, cleaning=cleaning, max_length=max_length, meteor=meteor,
                  read_labels=read_labels, reference_labels=reference_labels, findings=findings)
    stored = [{}] * len(runs) if references else _stored_scores(runs, orders)
    scores = [_score(judge, protocol, [run.texts[row] for row in order], more)
              for run, order, more in zip(runs, orders, stored)]

  of_runs = ([run.subjects[row] for row in order] for run, order in zip(runs, orders) if run.subjects)
  subjects = truth.subjects or next(of_runs, None) or truth.ids or truth.places
  weights, ones = resample(subjects, seed), np.ones((1, len(judge)))
  arms = scores[:sizes[0]], scores[sizes[0]:]
  whole = [[nothing_is_0(score(ones)) for score in arm] for arm in arms]            # of each run
  point = [_weighted(of, np.full((1, len(of)), 1 / len(of))) for of in whole]
  samples = [_weighted([score(weights) for score in arm], of)
             for arm, of in zip(arms, draw_runs(sizes, len(weights), seed))]
  notes = {**judge.notes, **_notes(sizes), **({} if len(weights) else {"intervals": ONE_SUBJECT})}
  for run, order in zip(runs, orders):
    notes |= note_of_copies(truth, run, order)
  result = {
      **{name: {"files": list(map(str, paths)), **_floats(mean), "runs": [_floats(run)["nlg"] for run in each]}
         for name, paths, mean, each in zip("ab", (a, b), point, whole)},
      "a_minus_b": differences_of(subtract(*point), subtract(*samples)),
      "num_studies": len(judge), "num_subjects": len(set(subjects)), "protocol": protocol, "cleaning": cleaning,
      "max_length": max_length, "labeler": labeler, "level": LEVEL, "num_samples": len(weights),
      "fields": {"references": truth.text_field, "predictions": [run.text_field for run in runs]},
      "support": _support(judge), "notes": notes}
  log(format_comparison(result))
  if json_path:
    atomic_write(json_path, json.dumps(result, indent=2) + "\n")
    log(f"comparison: {json_path}")
  return result


def _references(first: Reports, path: str | None, read: Callable[[str, str], Reports]) -> Reports:
  """Returns the references, of a file of their own or of the first run."""
  if path:
    return read(path, "references")
  try:
    found = read(first.path, "references")
  except UserError as error:
    raise UserError(f"{error}; or give the references with --references") from error
  if found.text_field == first.text_field:
    raise UserError(f"{first.path} holds predictions (its field {found.text_field}) and no references: give these with "
                    "--references")
  return found


def _same_studies(truth: Reports, run: Reports, read: Callable[[str, str], Reports]) -> list[int]:
  """Returns the row of `run` for each study of the first run, whose references it must share."""
  if truth.ids and run.ids:
    ours, others = set(truth.ids), set(run.ids)
    if ours != others:
      raise UserError(f"{truth.path} and {run.path} are about different studies: {len(ours - others)} are only in the "
                      f"first and {len(others - ours)} only in the second; evaluate both on the same split")
  order = match(truth, run)
  differ = _differing(truth, run, order, read)
  if differ:
    raise UserError(f"{truth.path} and {run.path} have different references for {len(differ)} of {len(order)} studies "
                    f"(the first: {differ[0]} of the former): give one file for both with --references")
  return order


def _differing(truth: Reports, run: Reports, order: Sequence[int], read: Callable[[str, str], Reports]) -> list[str]:
  """Returns the places in `truth` of references that the file of `run` has otherwise."""
  meant = read(run.path, "references").texts
  return [place for place, text, row in zip(truth.places, truth.texts, order) if text != meant[row]]


def _said_by_evaluations(runs: Sequence[Reports], asked: Mapping) -> dict:
  """Returns what is `asked` for, and where that is None what the runs' evaluations did; None where none of them tells.

  Raises:
    UserError: evaluations that prepared their references in different ways.
  """
  said, chosen = [_said_by_evaluation(run.path) for run in runs], {}
  for name, value in asked.items():
    values = list(dict.fromkeys(of[name] for of in said if of))
    if value is None and len(values) > 1:
      raise UserError(f"the runs were evaluated with different values of {name} ({', '.join(map(str, values))}): "
                      f"choose one for all with --{name.replace('_', '-')}")
    chosen[name] = next(iter(values), None) if value is None else value
  return chosen


def _said_by_evaluation(path: str) -> Mapping:
  """Returns how an evaluation prepared its references, {} for files of others."""
  beside = epath.Path(path).with_suffix(".json")
  try:
    said = json.loads(beside.read_text())["references"] if beside.exists() else {}
    return {"cleaning": str(said["cleaning"]), "max_length": int(said["max_length"])} if said else {}
  except (ValueError, TypeError, LookupError):
    return {}


def _tokenizer(runs: Sequence[Reports], train: str | None, cleaning: str, threshold: int, references: Sequence[str]):
  """Returns the tokenizer that r2gen's references pass: of the training reports, or of the runs' workdirs.

  None where a run has no workdir, or where vocabularies make different references.
  """
  if train:
    return WordTokenizer.train(read_reports(train, "references", "train").texts, cleaning, threshold, False)
  folders = [epath.Path(run.path).parent.parent / "tokenizer" for run in runs]
  if not all((folder / "tokenizer.json").exists() for folder in folders):
    return None
  first, *others = map(load_tokenizer, dict.fromkeys(folders))
  decoded = lambda tokenizer: [tokenizer.decode(tokenizer.encode(text)) for text in references]
  return first if all(decoded(first) == decoded(other) for other in others) else None


def _check_labelled(truth: Reports, runs: Sequence[Reports], orders: Sequence[Sequence[int]],
                    read: Callable[[str, str], Reports]) -> None:
  """Refuses stored labels that were read from other references than those that are given."""
  for run, order in zip(runs, orders):
    if differ := _differing(truth, run, order, read):
      raise UserError(f"the labels in {run.path} are of other references than {truth.path} for {len(differ)} of "
                      f"{len(order)} studies (the first: {differ[0]} of the latter): choose --labeler rules")


def _stored_labels(runs: Sequence[Reports], orders: Sequence[Sequence[int]]):
  """Returns what looks up the labels of a report in the runs' files, and those of the references.

  Raises:
    UserError: a row without labels, or labels that two readers have read.
  """
  stated, meant = {}, {}
  for run, order in zip(runs, orders):
    for study, row in enumerate(order):
      labels, where = stored_labels(run.rows[row]), f"{run.path} {run.places[row]}"
      if labels is None:
        raise UserError(f"{where}: no labels as evaluations store them; evaluate it again, or choose --labeler rules")
      for known, key, value in ((stated, run.texts[row], labels["generated"]), (meant, study, labels["reference"])):
        if known.setdefault(key, value) != value or value.keys() != meant.get(0, value).keys():
          raise UserError(f"{where}: its labels differ from those that stand elsewhere for the same report, or are of "
                          "other findings: they come from different labelers; choose --labeler rules")
  return stated.__getitem__, [meant[study] for study in range(len(meant))]


def _stored_scores(runs: Sequence[Reports], orders: Sequence[Sequence[int]]) -> list[dict[str, np.ndarray]]:
  """Returns of each run the scores [n] that all files hold of each study beside our own metrics: those by RadEval."""
  of_each = [[run.rows[row].get("scores") for row in order] for run, order in zip(runs, orders)]
  if not all(isinstance(scores, Mapping) for rows in of_each for scores in rows):
    return [{}] * len(runs)
  names = [name for name in of_each[0][0] if name not in METRICS and all(name in rows[0] for rows in of_each)]
  return [{name: np.array([scores.get(name) for scores in rows], float) for name in names} for rows in of_each]


def _score(judge: Scorer, protocol: str, hypotheses: Sequence[str], stored: Mapping[str, np.ndarray]) -> Score:
  """Returns the function of weights [R, n] that gives {"nlg", "radeval", "labels"} of one run."""
  scores = judge.nlg(protocol, hypotheses)
  if scores.counts is None:
    raise UserError(f"--protocol {protocol}: {judge.notes[protocol]}")
  nlg, radeval, labels = nlg_of(scores), means_of(stored), judge.labels(hypotheses)
  return lambda weights: {"nlg": nlg(weights), "radeval": radeval(weights),
                          "labels": labels and label_values(labels, weights)}


def _weighted(runs: Sequence[Mapping], weights: np.ndarray) -> dict:
  """Returns the mean over k runs with weights [R, k]."""
  def mean(*arrays):
    return None if any(array is None for array in arrays) else (np.stack(arrays, 1) * weights).sum(1)
  return map_leaves(mean, *runs)


def _floats(score: Mapping) -> dict:
  return map_leaves(lambda array: None if array is None else float(array[0]), score)


def _support(judge: Scorer) -> dict[str, int]:
  """Returns how many references have each finding, uncertain ones not counted."""
  return {finding: sum(labels[finding] == "positive" for labels in judge.reference_labels)
          for finding in judge.findings} if judge.reference_labels else {}


def _notes(sizes: Sequence[int]) -> dict[str, str]:
  notes = {f"seeds of {name}": "a single run: the intervals don't know what another seed would have given"
           for name, size in zip("AB", sizes) if size == 1}
  return notes | {f"seeds of {name}": f"{size} runs: few, so that intervals are still somewhat too narrow"
                  for name, size in zip("AB", sizes) if 1 < size < 5}


def draw_runs(sizes: Sequence[int], num_samples: int, seed: int) -> list[np.ndarray]:
  """Returns for each arm of k runs weights [R, k] that sum to 1: how much each run counts in each sample."""
  drawn = {}
  for arm, k in enumerate(sizes):
    rng = np.random.default_rng([seed, 1, 0 if len(set(sizes)) == 1 else arm])       # apart from the draws of subjects
    times = rng.multinomial(k, np.full(k, 1 / k), num_samples) / k
    drawn[arm] = 1 / k + math.sqrt(k / (k - 1)) * (times - 1 / k) if k > 1 else times
  return [drawn[arm] for arm in range(len(sizes))]
