"""All that is said of a split's generated reports, in one dictionary.

Reports come in as text, whichever model wrote them. A score never stands alone: with it come its interval, what no
model is needed for (`baselines`), what the same model says when it sees another study's images (`controls`), and how
far it is ahead of each of these on the same draws of subjects.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
from typing import NamedTuple

import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import LABEL_METRICS, neighbour_reports
from mcsam_jax.evaluation.scorer import nlg_of, Scorer
from mcsam_jax.findings import FINDINGS
from mcsam_jax.metrics.bootstrap import differences, intervals, LEVEL, ONE_SUBJECT, points, resample, Score
from mcsam_jax.metrics.clinical_f1 import label_values, LabelCounts, mean_counts, points_of
from mcsam_jax.metrics.diversity import Variety
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import (
  apply_protocol,
  as_r2gen_reference,
  clean_hypothesis,
  DESCRIPTIONS,
  PROTOCOLS,
  UNKNOWN,
)

METEOR_PERMUTATIONS = 2       # of the control, and under the main protocol alone: METEOR takes ten times as long as the
                              # other metrics together
_FAST = [metric for metric in METRICS if metric != "METEOR"]


def score_reports(
    *, ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str],
    shuffled_hypotheses: Sequence[Sequence[str]], train_reports: Sequence[str] | None,
    pooled: Mapping[str, np.ndarray] | None, constant: Mapping[str, dict | None] | None, tokenizer, cleaning: str,
    max_length: int, read_labels: Callable[[str], Mapping[str, str]] | None = None,
    reference_labels: Sequence[Mapping[str, str]] | None = None, findings: Sequence[str] = FINDINGS,
    restricted: bool = False, seed: int = 0, subjects: Sequence[str] | None = None,
    train_subjects: Sequence[str] | None = None, own_pooled: Mapping[str, np.ndarray] | None = None,
    meteor: Meteor | None = None,
) -> tuple[dict, list[dict], list[dict] | None]:
  """Scores the reports of m studies.

  Args:
    ids: one a study, all different.
    references: the reports as they were written.
    hypotheses: the generated reports; an empty one is allowed and scores zero.
    shuffled_hypotheses: R lists, in each what the model wrote for study i from the images of another study; the
      control is their mean. None at all is allowed.
    train_reports: n reports as they were written, one a train record; None where they aren't known.
    pooled: "train" [n, C] and "split" [m, C], features of the frozen initial encoder; None: no such baselines.
    constant: what `baselines.constant_baseline` found on val, and with a labeler `baselines.constant_of_labels`;
      None: no such baseline.
    tokenizer: the model's; None leaves out the protocol r2gen, and what stands under it is then under clean.
    cleaning: one of `text.RULES`.
    max_length: tokens of a report, eos included.
    read_labels: reads {finding: label} from a report, or has a method `read` for many; None: there is no labeler.
    reference_labels: the labels of the studies where they are known better than from their reports.
    findings: those of the labels that count.
    restricted: True leaves out every text of a report.
    seed: of the resampling.
    subjects: one a study; None: each study is a subject of its own.
    train_subjects: n, so that no study's nearest image is its own subject's where the split is train; None: it isn't.
    own_pooled: like `pooled`, by the model's own encoder; adds the baselines `nearest_own` and `medoid_own`.
    meteor: a running METEOR; None starts one for this call.

  Returns:
    The scores, ready for JSON; for each study its own scores under the main protocol; for each study the labels of its
    "reference" and its "generated" report (of `findings`), None without a labeler. In the scores, `intervals` repeats
    their nesting with {"low", "high"} in place of a number, or None where all studies are of one subject.

  Raises:
    UserError: no study, a study that stands twice, or lists of different lengths.
  """
  subjects = list(ids if subjects is None else subjects)
  _check(ids, references, hypotheses, shuffled_hypotheses, subjects)
  weights = resample(subjects, seed)
  with contextlib.nullcontext(meteor) if meteor else Meteor() as meteor:
    meteor.start()                                # it loads while the first texts are prepared
    judge = Scorer(references, tokenizer=tokenizer, cleaning=cleaning, max_length=max_length, meteor=meteor,
                  read_labels=read_labels, reference_labels=reference_labels, findings=findings)
    model, per_study = _model(judge, hypotheses)
    controls = {"shuffled_images": _shuffled(judge, shuffled_hypotheses)} if shuffled_hypotheses else {}
    baselines = {}
    if constant:
      best_meteor = (constant.get("METEOR") or {}).get("report")      # METEOR is slow: of the others it isn't asked
      chosen = {report: _baseline(judge, [report] * len(ids), METRICS if report == best_meteor else _FAST)
                for report in dict.fromkeys(entry["report"] for entry in constant.values() if entry)}
      baselines["constant"] = _constant(constant, chosen)
    who = (subjects, train_subjects) if train_subjects else (None, None)
    for name, reports in _neighbours(judge, train_reports, pooled, own_pooled, (tokenizer, cleaning, max_length), who):
      baselines[name] = _baseline(judge, reports)

  scores, sure = _with_intervals(model, weights)
  for kind, systems in (("baselines", baselines), ("controls", controls)):
    scores[kind], sure[kind] = {}, {}
    for name, system in systems.items():
      scores[kind][name], sure[kind][name] = _with_intervals(system, weights)
      scores[kind][name]["model_minus_this"] = differences(_headline(model), _headline(system), weights)
  if constant:
    scores["baselines"]["constant"]["chosen_for"] = _chosen_for(constant, chosen, restricted)
  if controls:
    lead = scores["controls"]["shuffled_images"]["model_minus_this"]["nlg"]["CIDEr"]
    scores["controls"]["shuffled_images"] |= {
        "num_permutations": len(shuffled_hypotheses),
        "num_permutations_METEOR": min(METEOR_PERMUTATIONS, len(shuffled_hypotheses)),
        "CIDEr_difference": {"mean": lead["difference"], "low": lead["low"], "high": lead["high"]}}

  variety, unseen = _variety_and_unseen(model, references, hypotheses, train_reports, tokenizer, cleaning, max_length,
                                        weights, restricted)
  for part in (variety, unseen):
    scores |= part[0]
    sure |= part[1]
  return {
      "num_studies": len(ids), "num_subjects": len(set(subjects)), **scores,
      "intervals": {"level": LEVEL, "num_samples": len(weights), "resampled": "subjects", **sure},
      "references": {**DESCRIPTIONS, "cleaning": cleaning, "max_length": max_length, "main": judge.main,
                     "CIDEr": "document frequencies are those of all references, in resamples and parts too",
                     "unk_share": tokenizer and _unk_share(references, tokenizer, cleaning, max_length)},
      "notes": {**judge.notes, **({} if len(weights) else {"intervals": ONE_SUBJECT})},
  }, per_study, _labels(judge, hypotheses)


class _System(NamedTuple):
  """One report a study, by whatever wrote them."""
  nlg: Score                    # metric -> [R], or protocol -> metric -> [R]
  main: Score                   # metric -> [R], under the main protocol
  counts: LabelCounts | None
  labels: Score | None          # of the counts, as `label_values` gives them
  num_studies: int


def _model(judge: Scorer, hypotheses: Sequence[str]) -> tuple[_System, list[dict]]:
  scores = {protocol: judge.nlg(protocol, hypotheses) for protocol in PROTOCOLS}
  per_study = scores[judge.main].per_study
  rows = [{metric: None if values is None else float(values[i]) for metric, values in per_study.items()}
          for i in range(len(hypotheses))]
  return _by_protocol(judge, {protocol: [of] for protocol, of in scores.items()}, judge.labels(hypotheses)), rows


def _labels(judge: Scorer, hypotheses: Sequence[str]) -> list[dict] | None:
  stated = judge.stated(hypotheses)
  counted = lambda labels: {finding: labels[finding] for finding in judge.findings}
  return stated and [{"reference": counted(truth), "generated": counted(said)}
                     for truth, said in zip(judge.reference_labels, stated)]


def _shuffled(judge: Scorer, lists: Sequence[Sequence[str]]) -> _System:
  metrics = lambda protocol, turn: METRICS if protocol == judge.main and turn < METEOR_PERMUTATIONS else _FAST
  scores = {protocol: [judge.nlg(protocol, reports, metrics(protocol, turn)) for turn, reports in enumerate(lists)]
            for protocol in PROTOCOLS}
  labels = [judge.labels(reports) for reports in lists]
  return _by_protocol(judge, scores, None if labels[0] is None else mean_counts(labels))


def _by_protocol(judge: Scorer, scores: Mapping, labels: LabelCounts | None) -> _System:
  of_each = {protocol: None if several[0].counts is None else nlg_of(*several)
             for protocol, several in scores.items()}
  return _System(lambda weights: {protocol: of and of(weights) for protocol, of in of_each.items()},
                 of_each[judge.main], labels, _values_of(labels), len(judge))


def _baseline(judge: Scorer, reports: Sequence[str], metrics: Sequence[str] = METRICS) -> _System:
  nlg = nlg_of(judge.nlg(judge.main, reports, metrics))
  labels = judge.labels(reports)
  return _System(nlg, nlg, labels, _values_of(labels), len(judge))


def _values_of(counts: LabelCounts | None) -> Score | None:
  return counts and (lambda weights: label_values(counts, weights))


def _neighbours(judge: Scorer, train_reports, pooled, own_pooled, preparation, who):
  """Yields (name, reports) of the baselines that need features."""
  features = {"": pooled, "_own": own_pooled}
  if train_reports is None or not any(features.values()):
    return
  _, train = apply_protocol(judge.main, [], train_reports, *preparation)
  for which, of in features.items():
    if of:
      yield from zip((f"nearest{which}", f"medoid{which}"), neighbour_reports(of["split"], of["train"], train, *who))


def _constant(constant: Mapping[str, dict | None], chosen: Mapping[str, _System]) -> _System:
  """Returns each metric's score of the report that was chosen for it.

  The macro averages of the labels are those of the report that was chosen for macro_F1, all else of the labels is of
  the one for micro_F1.
  """
  def nlg(weights):
    of_each = {report: system.main(weights) for report, system in chosen.items()}
    return {metric: entry and of_each[entry["report"]][metric] for metric, entry in constant.items()
            if metric in METRICS}
  micro, macro = (chosen[constant[metric]["report"]] if metric in constant else None for metric in LABEL_METRICS)
  known = micro and macro and micro.labels
  labels = (lambda weights: _with_macro(micro.labels(weights), macro.labels(weights))) if known else None
  return _System(nlg, nlg, micro.counts if known else None, labels, next(iter(chosen.values())).num_studies)


def _with_macro(labels: Mapping, others: Mapping) -> dict:
  """Returns the values of labels, with the macro averages of others."""
  return {key: others[key] if key.startswith("macro") else
          _with_macro(below, others[key]) if isinstance(below, Mapping) else below for key, below in labels.items()}


def _chosen_for(constant: Mapping[str, dict | None], chosen: Mapping[str, _System], restricted: bool) -> dict:
  """Returns for each metric the report that was chosen, its score on val, and all of its scores here."""
  scores = {report: _points(system) for report, system in chosen.items()}
  return {metric: entry and {**({} if restricted else {"report": entry["report"]}), "val_score": entry["val_score"],
                             **scores[entry["report"]]}
          for metric, entry in constant.items()}


def _points(system: _System) -> dict:
  return {"nlg": points(system.nlg, system.num_studies),
          "labels": system.labels and points_of(system.counts, system.labels)}


def _with_intervals(system: _System, weights: np.ndarray) -> tuple[dict, dict]:
  return _points(system), {"nlg": intervals(system.nlg, weights),
                           "labels": system.labels and intervals(system.labels, weights)}


def _headline(system: _System) -> Score:
  """Returns what systems are compared by: the metrics, and F1 of the findings."""
  def values(weights):
    labels = system.labels and system.labels(weights)
    return {"nlg": system.main(weights),
            "labels": labels and {average: {"f1": labels[average]["f1"]} for average in ("micro", "macro")}}
  return values


def _variety_and_unseen(model: _System, references, hypotheses, train_reports, tokenizer, cleaning, max_length,
                        weights, restricted) -> list[tuple[dict, dict]]:
  """Returns (scores, intervals) of how reports vary, and of the studies whose reference isn't in train."""
  written, meant = ([clean_hypothesis(report, cleaning) for report in reports] for reports in (hypotheses, references))
  seen = None
  if train_reports is not None:
    trained_on = {clean_hypothesis(report, cleaning) for report in train_reports}
    seen = trained_on | ({as_r2gen_reference(report, tokenizer, cleaning, max_length) for report in train_reports}
                         if tokenizer else set())
  variety, of_references = Variety(hypotheses, written, seen), Variety(references, meant, seen and trained_on)
  about = {"distinct_reports": variety.num_distinct, **points(variety.values, len(written)),
           "of_references": {"distinct_reports": of_references.num_distinct,
                             **points(of_references.values, len(written))}}
  if not restricted:
    about["most_common_report"] = variety.commonest
  described = about, intervals(variety.values, weights)
  if seen is None:
    return [described, ({}, {})]
  new = np.array([report not in trained_on for report in meant], np.float64)
  if not new.any():
    return [described, ({"unseen_references": {"num_studies": 0}}, {})]
  part = lambda of: _headline(model)(of * new)
  return [described, ({"unseen_references": {"num_studies": int(new.sum()), **points(part, len(new))}},
                      {"unseen_references": intervals(part, weights)})]


def _unk_share(references: Sequence[str], tokenizer, cleaning: str, max_length: int) -> float:
  """Returns the share of the references' words that are <unk> under r2gen."""
  words = " ".join(as_r2gen_reference(report, tokenizer, cleaning, max_length) for report in references).split()
  return words.count(UNKNOWN) / max(len(words), 1)


def other_studies(count: int, num_permutations: int, seed: int) -> np.ndarray:
  """Returns permutations [R, count] that give each study the images of another one; no two agree anywhere.

  They are the turns of a single random cycle, so there are at most count - 1 of them, R <= `num_permutations`. The
  generated report is a function of the images alone: what a model writes for study i when the images are permuted
  is what it wrote for the study that they come from.
  """
  order = np.random.default_rng(seed).permutation(count)
  turns = np.arange(1, min(num_permutations, count - 1) + 1)
  others = np.empty((len(turns), count), np.int64)
  others[:, order] = [np.roll(order, turn) for turn in turns]
  return others


def _check(ids, references, hypotheses, shuffled_hypotheses, subjects) -> None:
  if not ids:
    raise UserError("no study to score: the split is empty")
  twice = len(ids) - len(set(ids))
  if twice:                                       # which ones is not said: an id may be restricted
    raise UserError(f"{twice} of {len(ids)} reports belong to a study that stands there already; "
                    "each study is scored once")
  for name, reports in (("references", references), ("hypotheses", hypotheses), ("subjects", subjects),
                        *(("hypotheses for shuffled images", reports) for reports in shuffled_hypotheses)):
    if len(reports) != len(ids):
      raise UserError(f"{len(reports)} {name} for {len(ids)} studies: give one a study")
