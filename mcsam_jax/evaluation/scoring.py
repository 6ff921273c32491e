"""All that is said of a split's generated reports, in one dictionary, and the table that a person reads.

Reports come in as text, whichever model wrote them. A score never stands alone:
beside it are what no model is needed for (`baselines`) and what the same model
says when it sees another study's images (`controls`).
"""

import collections
from typing import Callable, Mapping, Sequence

import numpy as np

from input_pipeline.datasets.findings import FINDINGS
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import neighbour_reports
from mcsam_jax.evaluation.java import JavaUnavailable, Meteor
from mcsam_jax.evaluation.labels import label_scores
from mcsam_jax.evaluation.nlg import METRICS, NlgScores, nlg_scores
from mcsam_jax.evaluation.protocols import (
    DESCRIPTIONS, PROTOCOLS, UNKNOWN, apply_protocol, as_r2gen_reference, clean_hypothesis)


def score_reports(
    *, ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str],
    shuffled_hypotheses: Sequence[Sequence[str]], train_reports: Sequence[str], pooled: Mapping[str, np.ndarray],
    constant: Mapping[str, dict | None], tokenizer, cleaning: str, max_length: int,
    read_labels: Callable[[str], Mapping[str, str]] | None = None,
    reference_labels: Sequence[Mapping[str, str]] | None = None, findings: Sequence[str] = FINDINGS,
    restricted: bool = False, seed: int = 0,
) -> tuple[dict, list[dict]]:
  """Scores the reports of m studies.

  Args:
    ids: one a study, all different.
    references: the reports as they were written.
    hypotheses: the generated reports; an empty one is allowed and scores zero.
    shuffled_hypotheses: R lists, in each what the model wrote for study i from the images of another study; the
      control is their mean.
    train_reports: n reports as they were written, one a train record.
    pooled: "train" [n, C] and "split" [m, C], features of the frozen initial encoder.
    constant: what `baselines.constant_baseline` found on val.
    tokenizer: the model's.
    cleaning: one of `text.RULES`.
    max_length: tokens of a report, eos included.
    read_labels: reads {finding: label} from a report; None where the data has no labeler.
    reference_labels: the labels of the studies where they are known better than from their reports.
    findings: those of the labels that count.
    restricted: True leaves out every text of a report.
    seed: of the bootstrap.

  Returns:
    The scores, ready for JSON, and for each study its own scores under r2gen.

  Raises:
    UserError: no study, a study that stands twice, or lists of different lengths.
  """
  _check(ids, references, hypotheses, shuffled_hypotheses)
  preparation = tokenizer, cleaning, max_length
  if read_labels and reference_labels is None:
    reference_labels = [read_labels(report) for report in references]

  def labels(reports):                            # one report a study, or several times that, counted together
    if not read_labels:
      return None
    times = len(reports) // len(ids)
    return label_scores(list(reference_labels) * times, list(map(read_labels, reports)), findings)

  with Meteor() as meteor:
    def nlg(reports):
      return {name: _nlg(name, references, reports, *preparation, meteor) for name in PROTOCOLS}

    own, shuffled = nlg(hypotheses), _means([nlg(reports) for reports in shuffled_hypotheses])
    r2gen_references, train = apply_protocol("r2gen", references, train_reports, *preparation)

    def baseline(reports):
      return {"nlg": nlg_scores(r2gen_references, reports, meteor).corpus, "labels": labels(reports)}

    near, typical = neighbour_reports(pooled["split"], pooled["train"], train)
    baselines = {"constant": _constant(constant, len(ids), baseline, restricted),
                 "nearest": baseline(near), "medoid": baseline(typical)}

  order = np.argsort(np.asarray(ids))             # the interval must not hang on the order of studies
  difference = paired_difference(own["r2gen"].per_study["CIDEr"][order],
                                 shuffled["r2gen"].per_study["CIDEr"][order], seed)
  seen = {clean_hypothesis(report, cleaning) for report in train_reports}
  seen.update(as_r2gen_reference(report, tokenizer, cleaning, max_length) for report in train_reports)
  scores = {
      "num_studies": len(ids),
      "nlg": _corpus(own),
      "labels": labels(hypotheses),
      "baselines": baselines,
      "controls": {"shuffled_images": {
          "num_permutations": len(shuffled_hypotheses), "nlg": _corpus(shuffled),
          "labels": labels([report for reports in shuffled_hypotheses for report in reports]),
          "CIDEr_difference": difference}},
      **_variety([clean_hypothesis(report, cleaning) for report in hypotheses], seen, restricted),
      "references": {**DESCRIPTIONS, "cleaning": cleaning, "max_length": max_length},
      "notes": {key: note for result in own.values() for key, note in result.notes.items()},
  }
  return scores, _rows(own["r2gen"].per_study, len(ids))


def paired_difference(per_study_a: np.ndarray, per_study_b: np.ndarray, seed: int,
                      num_samples: int = 1000) -> dict[str, float]:
  """Returns the mean of a - b over studies and its 95 % interval, by the percentile bootstrap over studies.

  Args:
    per_study_a: [m], a system's scores.
    per_study_b: [m], another's on the same studies, in the same order.
    seed: of the resampling.
    num_samples: times that m studies are drawn with replacement.
  """
  difference = np.asarray(per_study_a, np.float64) - np.asarray(per_study_b, np.float64)     # [m]
  rng = np.random.default_rng(seed)
  means = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(num_samples)]
  low, high = np.percentile(means, [2.5, 97.5])
  return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def format_table(scores: Mapping) -> str:
  """Returns the scores as text: the model, its control and the baselines in rows, metrics in columns."""
  control = scores["controls"]["shuffled_images"]
  rows = [("this model", scores["nlg"]["r2gen"], scores["labels"]),
          ("images shuffled", control["nlg"]["r2gen"], control["labels"]),
          *((name, row["nlg"], row["labels"]) for name, row in (
              ("constant report", scores["baselines"]["constant"]),
              ("nearest image's", scores["baselines"]["nearest"]),
              ("medoid of nearest", scores["baselines"]["medoid"])))]
  columns = [metric.replace("_", "-") for metric in METRICS]
  if scores["labels"]:
    columns += ["micro-F1", "macro-F1"]
  lines = [f"{scores['num_studies']} studies, protocol r2gen", _line("", columns)]
  for name, nlg, labels in rows:
    values = [nlg[metric] for metric in METRICS]
    if labels:
      values += [labels["micro"]["f1"], labels["macro"]["f1"]]
    lines.append(_line(name, ["-" if value is None else f"{value:.3f}" for value in values]))
  difference = control["CIDEr_difference"]
  lines += [
      f"CIDEr with its own images minus with shuffled ones ({control['num_permutations']} permutations), a study: "
      f"{difference['mean']:.3f} (95 % interval {difference['low']:.3f} to {difference['high']:.3f})",
      f"{scores['distinct_reports']} distinct reports, the commonest for {scores['most_common_share']:.1%}; "
      f"{scores['copied_from_train']:.1%} stand word for word in train; "
      f"{scores['mean_length']:.1f} words a report, {scores['unk_share']['words']:.1%} of them {UNKNOWN}",
      *(f"{key}: {note}" for key, note in scores["notes"].items())]
  return "\n".join(lines)


def _line(name: str, cells: Sequence[str]) -> str:
  return f"{name:<18}" + "".join(f"{cell:>9}" for cell in cells)


def _check(ids, references, hypotheses, shuffled_hypotheses) -> None:
  if not ids:
    raise UserError("no study to score: the split is empty")
  twice = len(ids) - len(set(ids))
  if twice:                                       # which ones is not said: an id may be restricted
    raise UserError(f"{twice} of {len(ids)} reports belong to a study that stands there already; "
                    "each study is scored once")
  for name, reports in (("references", references), ("hypotheses", hypotheses),
                        *(("hypotheses for shuffled images", reports) for reports in shuffled_hypotheses)):
    if len(reports) != len(ids):
      raise UserError(f"{len(reports)} {name} for {len(ids)} studies: give one a study")


def _nlg(protocol, references, hypotheses, tokenizer, cleaning, max_length, meteor) -> NlgScores:
  """Returns the scores under a protocol; their corpus is None where the protocol can't be applied."""
  try:
    pairs = apply_protocol(protocol, references, hypotheses, tokenizer, cleaning, max_length)
  except JavaUnavailable as reason:
    return NlgScores(None, None, {protocol: str(reason)})
  return nlg_scores(*pairs, meteor)


def _means(results: Sequence[Mapping[str, NlgScores]]) -> dict[str, NlgScores]:
  """Returns the means over several lists of reports for the same studies, of corpus and study scores alike."""
  def mean(values):
    return None if any(value is None for value in values) else np.mean(values, axis=0)

  def all_metrics(scores):
    return None if scores[0] is None else {metric: mean([row[metric] for row in scores]) for metric in scores[0]}

  means = {}
  for protocol, first in results[0].items():
    corpus, per_study = (all_metrics([getattr(result[protocol], field) for result in results])
                         for field in ("corpus", "per_study"))
    means[protocol] = NlgScores(corpus, per_study, first.notes)
  return means


def _corpus(results: Mapping[str, NlgScores]) -> dict:
  return {protocol: result.corpus for protocol, result in results.items()}


def _constant(chosen, num_studies, baseline, restricted) -> dict:
  """Returns each metric's score of the report that was chosen for it, and all scores of all chosen reports.

  `labels` are those of the chosen report that does best on this very split: generous to the baseline.
  """
  scored = {entry["report"]: baseline([entry["report"]] * num_studies) for entry in chosen.values() if entry}
  choices = {metric: entry and {**({} if restricted else {"report": entry["report"]}),
                                "val_score": entry["val_score"], **scored[entry["report"]]}
             for metric, entry in chosen.items()}
  labels = [scores["labels"] for scores in scored.values() if scores["labels"]]
  return {"nlg": {metric: choice and choice["nlg"][metric] for metric, choice in choices.items()},
          "labels": max(labels, key=lambda of: of["micro"]["f1"], default=None),
          "chosen_for": choices}


def _variety(reports: Sequence[str], seen: set[str], restricted: bool) -> dict:
  """Returns how different the cleaned reports are from each other and from those of train."""
  (commonest, times), = collections.Counter(sorted(reports)).most_common(1)
  words = [report.split() for report in reports]
  total = sum(map(len, words))
  return {
      "distinct_reports": len(set(reports)),
      "most_common_share": times / len(reports),
      **({} if restricted else {"most_common_report": commonest}),
      "copied_from_train": sum(report in seen for report in reports) / len(reports),
      "unk_share": {"reports": sum(UNKNOWN in row for row in words) / len(reports),
                    "words": sum(row.count(UNKNOWN) for row in words) / max(1, total)},
      "mean_length": total / len(reports),
  }


def _rows(per_study: Mapping[str, np.ndarray | None], num_studies: int) -> list[dict]:
  return [{metric: None if values is None else float(values[i]) for metric, values in per_study.items()}
          for i in range(num_studies)]
