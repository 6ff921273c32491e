"""Scores the generated reports of a split; everything comes back in one dictionary that is ready for JSON.

Reports come in as text, whichever model wrote them. No score comes alone: beside it are its interval, the baselines
that need no model, the control (the same model shown another study's images), and the paired difference to each of
these on the same resampled subjects.

Shapes: B studies, M training reports, C feature channels, R resamples.
"""

from collections.abc import Mapping, Sequence
import contextlib

import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import nearest_reports
from mcsam_jax.evaluation.scorer import Scorer
from mcsam_jax.evaluation.systems import (
  combine_constants,
  compute_system_intervals,
  compute_system_points,
  FAST_METRICS,
  make_headline_score,
  METEOR_PERMUTATIONS,
  score_baseline,
  score_control,
  score_model,
  System,
)
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.bootstrap import (
  compute_differences,
  compute_intervals,
  compute_point_estimates,
  LEVEL,
  ONE_SUBJECT_NOTE,
  resample,
)
from mcsam_jax.metrics.diversity import Diversity
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import (
  apply_protocol,
  clean_hypothesis,
  DESCRIPTIONS,
  prepare_r2gen_reference,
  UNKNOWN,
)

ONE_STUDY_NOTES = {"shuffled_images": "left out: a single study has no other study's images",
                   "CIDEr": "0 by definition: in a single reference no word is rarer than another"}


def score_reports(
    *, ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str],
    shuffled_hypotheses: Sequence[Sequence[str]], train_reports: Sequence[str] | None,
    initial_features: Mapping[str, np.ndarray] | None, constants: Mapping[str, dict | None] | None, tokenizer,
    cleaning: str, max_length: int, labeler: Labeler | None = None,
    reference_labels: Sequence[Mapping[str, str]] | None = None,
    restricted: bool = False, seed: int = 0, subjects: Sequence[str] | None = None,
    train_subjects: Sequence[str] | None = None, model_features: Mapping[str, np.ndarray] | None = None,
    meteor: Meteor | None = None,
) -> tuple[dict, list[dict], list[dict] | None]:
  """Scores one generated report per study, beside the control and the baselines.

  Args:
    ids: B ids, all different.
    references: B reports, as they were written.
    hypotheses: B generated reports; an empty one is allowed and scores zero.
    shuffled_hypotheses: lists of B reports, each with what the model wrote for every study from the images of another
      study (`derangements`). The control is the mean over the lists; without any there is no control.
    train_reports: M reports, as they were written, one per training record; None where they aren't known.
    initial_features: "train" [M, C] and "split" [B, C], image features of the encoder before training, for the
      baselines nearest and medoid; None leaves these out.
    constants: the results of `baselines.find_constants` and, with a labeler, `baselines.find_label_constants`;
      None leaves out the constant baseline.
    tokenizer: the model's; None leaves out the protocol r2gen, and `clean` is the main protocol instead.
    cleaning: one of `text.RULES`.
    max_length: tokens of a report, end of sequence included.
    labeler: its findings are those that count; None: no label scores.
    reference_labels: B label mappings, where they are known better than from the reports.
    restricted: leaves every text of a report out of the scores.
    seed: of the resampling.
    subjects: B subjects; None: each study is a subject of its own.
    train_subjects: M subjects, needed where the split is part of train, so that the nearest image of a study is never
      one of its own subject; None: the split and train share no subject.
    model_features: like `initial_features`, but of the evaluated model; adds the baselines nearest_model_features and
      medoid_model_features.
    meteor: a running METEOR; None starts one for this call.

  Returns:
    The scores, in which the control of a single study is None, with a note; for each study {metric: score} under the
    main protocol; and for each study {"reference", "generated"}, the labels of both reports (of the labeler's
    findings), or None without a labeler. In the scores, `intervals` has the same nesting with {"low", "high"} in place
    of each number, or None where all studies belong to one subject.

  Raises:
    UserError: there is no study, a study occurs twice, or lists differ in length.
  """
  subjects = list(ids if subjects is None else subjects)
  _check_inputs(ids, references, hypotheses, shuffled_hypotheses, subjects)
  weights = resample(subjects, seed)                  # [R, B]
  preparation = tokenizer, cleaning, max_length
  cleaned_train = None if train_reports is None else {clean_hypothesis(report, cleaning) for report in train_reports}

  # The model, its control and the baselines.
  with contextlib.nullcontext(meteor) if meteor else Meteor() as meteor:
    meteor.start()                                    # Java starts while the first texts are prepared
    scorer = Scorer(references, tokenizer=tokenizer, cleaning=cleaning, max_length=max_length, meteor=meteor,
                    labeler=labeler, reference_labels=reference_labels)
    model, per_study = score_model(scorer, hypotheses)
    controls = {"shuffled_images": score_control(scorer, shuffled_hypotheses)} if shuffled_hypotheses else {}
    baselines, constant_systems = {}, {}
    if constants:
      constant_systems = _score_constants(scorer, constants)
      baselines["constant"] = combine_constants(constants, constant_systems)
    if train_reports is not None and (initial_features or model_features):
      _, prepared_train = apply_protocol(scorer.main_protocol, [], train_reports, *preparation)
      exclude = (subjects, train_subjects) if train_subjects else (None, None)
      for suffix, features in (("", initial_features), ("_model_features", model_features)):
        if features:
          nearest, medoid = nearest_reports(features["split"], features["train"], prepared_train, *exclude)
          baselines[f"nearest{suffix}"] = score_baseline(scorer, nearest)
          baselines[f"medoid{suffix}"] = score_baseline(scorer, medoid)

  # Points, intervals and paired differences.
  scores, bounds = compute_system_points(model), compute_system_intervals(model, weights)
  for kind, systems in (("baselines", baselines), ("controls", controls)):
    scores[kind] = {name: {**compute_system_points(system), "model_minus_this": compute_differences(
        make_headline_score(model), make_headline_score(system), weights)} for name, system in systems.items()}
    bounds[kind] = {name: compute_system_intervals(system, weights) for name, system in systems.items()}
  if constants:
    scores["baselines"]["constant"]["chosen_for"] = _describe_constants(constants, constant_systems, restricted)
  if len(ids) == 1:
    scores["controls"] = bounds["controls"] = {"shuffled_images": None}
  for control in filter(None, scores["controls"].values()):
    cider = control["model_minus_this"]["nlg"]["CIDEr"]
    control |= {"num_permutations": len(shuffled_hypotheses),
                "num_permutations_METEOR": min(METEOR_PERMUTATIONS, len(shuffled_hypotheses)),
                "CIDEr_difference": {"mean": cider["difference"], "low": cider["low"], "high": cider["high"]}}

  # Statistics of the texts, and scores on references that are not in the training set.
  for part_scores, part_bounds in (
      _describe_texts(references, hypotheses, train_reports, cleaned_train, preparation, weights, restricted),
      _score_unseen_references(model, references, cleaned_train, cleaning, weights)):
    scores |= part_scores
    bounds |= part_bounds
  scores = {
      "num_studies": len(ids), "num_subjects": len(set(subjects)), **scores,
      "intervals": {"level": LEVEL, "num_samples": len(weights), "resampled": "subjects", **bounds},
      "preparation": {**DESCRIPTIONS, "cleaning": cleaning, "max_length": max_length,
                      "main_protocol": scorer.main_protocol,
                      "CIDEr": "document frequencies come from all references, also in resamples and subsets",
                      "reference_unk_fraction": tokenizer and _unk_fraction(references, *preparation)},
      "notes": {**scorer.notes, **({} if len(weights) else {"intervals": ONE_SUBJECT_NOTE}),
                **(ONE_STUDY_NOTES if len(ids) == 1 else {})},
  }
  return scores, per_study, _pair_labels(scorer, hypotheses)


def derangements(num_studies: int, num_permutations: int, seed: int) -> np.ndarray:
  """Returns permutations int64 [P, B] without fixed points, which give each study the images of another one.

  No two of them agree anywhere: they are the rotations of one random cycle, so there are at most B - 1 of them and
  P <= `num_permutations`; a single study has none. A generated report is a function of the images alone, so what a
  model writes for study i from permuted images is what it wrote for the study that these images belong to.
  """
  cycle = np.random.default_rng(seed).permutation(num_studies)
  shifts = np.arange(1, min(num_permutations, num_studies - 1) + 1)
  permutations = np.empty((len(shifts), num_studies), np.int64)
  for row, shift in zip(permutations, shifts):
    row[cycle] = np.roll(cycle, shift)
  return permutations


def shuffle_hypotheses(hypotheses: Sequence[str], num_permutations: int, seed: int) -> list[list[str]]:
  """Returns for each of `derangements` the reports that the model writes for B studies with shuffled images."""
  permutations: list[list[int]] = derangements(len(hypotheses), num_permutations, seed).tolist()
  return [[hypotheses[index] for index in permutation] for permutation in permutations]


def _check_inputs(ids, references, hypotheses, shuffled_hypotheses, subjects) -> None:
  if not ids:
    raise UserError("no study to score: the split is empty")
  num_repeated = len(ids) - len(set(ids))
  if num_repeated:                                    # the ids themselves may be restricted
    raise UserError(f"{num_repeated} of {len(ids)} reports have the id of an earlier study: give one report per study")
  for name, values in (("references", references), ("hypotheses", hypotheses), ("subjects", subjects),
                       *(("hypotheses for shuffled images", shuffled) for shuffled in shuffled_hypotheses)):
    if len(values) != len(ids):
      raise UserError(f"{len(values)} {name} for {len(ids)} studies: give one per study")


def _score_constants(scorer: Scorer, constants: Mapping[str, dict | None]) -> dict[str, System]:
  """Returns for each distinct constant report the system that gives it to every study."""
  meteor_report = (constants.get("METEOR") or {}).get("report")      # METEOR is slow: it is computed for this one only
  reports = dict.fromkeys(chosen["report"] for chosen in constants.values() if chosen)
  return {report: score_baseline(scorer, [report] * len(scorer), METRICS if report == meteor_report else FAST_METRICS)
          for report in reports}


def _describe_constants(constants: Mapping[str, dict | None], systems: Mapping[str, System], restricted: bool) -> dict:
  """Returns for each metric the report that was chosen, its score on val, and all of its scores on this split."""
  scores = {report: compute_system_points(system) for report, system in systems.items()}
  return {metric: chosen and {**({} if restricted else {"report": chosen["report"]}), "val_score": chosen["val_score"],
                              **scores[chosen["report"]]}
          for metric, chosen in constants.items()}


def _describe_texts(references: Sequence[str], hypotheses: Sequence[str], train_reports: Sequence[str] | None,
                    cleaned_train: set[str] | None, preparation: tuple, weights: np.ndarray, restricted: bool
                    ) -> tuple[dict, dict]:
  """Returns the diversity statistics of the generated reports and of the references, and the former's intervals."""
  tokenizer, cleaning, _ = preparation
  train_texts = cleaned_train
  if cleaned_train is not None and train_reports is not None and tokenizer:
    # A model that copies a training report writes it as its tokenizer has shown it, with rare words as <unk>.
    train_texts = cleaned_train | {prepare_r2gen_reference(report, *preparation) for report in train_reports}
  generated, written = (Diversity(reports, [clean_hypothesis(report, cleaning) for report in reports], seen)
                        for reports, seen in ((hypotheses, train_texts), (references, cleaned_train)))
  statistics, reference_statistics = (
      {"distinct_reports": texts.num_distinct, **compute_point_estimates(texts.aggregate, len(references))}
      for texts in (generated, written))
  statistics["reference_statistics"] = reference_statistics
  if not restricted:
    statistics["most_common_report"] = generated.most_common_report
  return statistics, compute_intervals(generated.aggregate, weights)


def _score_unseen_references(model: System, references: Sequence[str], cleaned_train: set[str] | None,
                             cleaning: str, weights: np.ndarray) -> tuple[dict, dict]:
  """Returns the scores and intervals of the studies whose reference is not in train; both {} without train."""
  if cleaned_train is None:
    return {}, {}
  unseen = np.array([clean_hypothesis(report, cleaning) not in cleaned_train for report in references], np.float64)
  if not unseen.any():
    return {"unseen_references": {"num_studies": 0}}, {}
  headline = make_headline_score(model)
  unseen_headline = lambda weights: headline(weights * unseen)
  scores = {"num_studies": int(unseen.sum()), **compute_point_estimates(unseen_headline, len(unseen))}
  return {"unseen_references": scores}, {"unseen_references": compute_intervals(unseen_headline, weights)}


def _unk_fraction(references: Sequence[str], tokenizer, cleaning: str, max_length: int) -> float:
  """Returns the fraction of the references' words that are <unk> under r2gen."""
  words = " ".join(prepare_r2gen_reference(report, tokenizer, cleaning, max_length) for report in references).split()
  return words.count(UNKNOWN) / max(len(words), 1)


def _pair_labels(scorer: Scorer, hypotheses: Sequence[str]) -> list[dict] | None:
  """Returns {"reference", "generated"} per study, the labels of both reports; None without a labeler."""
  predicted = scorer.predict_labels(hypotheses)
  if predicted is None or scorer.reference_labels is None:
    return None
  select = lambda labels: {finding: labels[finding] for finding in scorer.findings}
  return [{"reference": select(reference), "generated": select(generated)}
          for reference, generated in zip(scorer.reference_labels, predicted)]
