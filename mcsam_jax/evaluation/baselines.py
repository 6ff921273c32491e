"""Baselines: reports that no model wrote, without which a score means little.

  constant  one training report for every study: the one that scores best on val. It is chosen once per metric,
            micro- and macro-F1 of the findings included.
  nearest   the report of the most similar training image.
  medoid    of the reports of the 30 most similar training images, the one with the most words in common with the rest.
            Both skip images of the same subject, which train contains where train itself is evaluated.

These depend only on the data and on image features of the encoder before training. `nearest_model_features` and
`medoid_model_features` are the same two by the evaluated model's own image features (inference/image_embeddings.py).

Shapes: B studies, M training reports, C feature channels, K neighbors.
"""

import collections
from collections.abc import Mapping, Sequence
import contextlib

import numpy as np

from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.clinical_f1 import compute_constant_f1, encode_labels
from mcsam_jax.metrics.constant_report import compute_word_f1, score_constant_reports
from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import apply_protocol

NUM_NEIGHBORS = 30
MAX_CANDIDATES = 3000         # distinct training reports that are tried as constants; IU X-Ray has 1,700
MAX_REFERENCES = 500          # val reports that candidates are scored on; IU X-Ray has 296
METEOR_SHORTLIST = 20         # candidates that METEOR is computed for
MAX_LABELED = 5000            # reports of either split whose findings are labeled
LABEL_METRICS = ("micro_F1", "macro_F1")      # label metrics that a constant report is chosen for


def find_constants(train_reports: Sequence[str], val_reports: Sequence[str], tokenizer, cleaning: str,
                   max_length: int, meteor: Meteor | None = None) -> dict[str, dict | None]:
  """Returns for each metric the training report that scores best as the only answer on val, under r2gen.

  The search is exact up to three limits. Of more than MAX_CANDIDATES distinct reports, half are the most frequent
  ones and half those with the best word F1 on val. More than MAX_REFERENCES val reports are thinned out evenly in
  alphabetical order. METEOR is computed for the METEOR_SHORTLIST candidates with the best word F1, since METEOR is
  essentially an F measure of words.

  Returns:
    {metric: {"report", "val_score"}}, ready for JSON; None for METEOR without Java. It holds text of training reports.
  """
  references, reports = apply_protocol("r2gen", val_reports, train_reports, tokenizer, cleaning, max_length)
  references = _thin_out(sorted(references), MAX_REFERENCES)
  candidates = _select_candidates(reports, references)
  scores = score_constant_reports(candidates, references)                   # metric -> [number of candidates]
  best: dict[str, dict | None] = {
      metric: {"report": candidates[values.argmax()], "val_score": float(values.max())}
      for metric, values in scores.items()}
  with contextlib.nullcontext(meteor) if meteor else Meteor() as meteor:
    best["METEOR"] = _find_best_by_meteor(candidates, references, meteor)
  return {metric: best[metric] for metric in METRICS}


def find_label_constants(train_reports: Sequence[str], val_reports: Sequence[str], tokenizer, cleaning: str,
                         max_length: int, labeler: Labeler,
                         val_labels: Sequence[Mapping[str, str]] | None = None) -> dict[str, dict]:
  """Returns for each of LABEL_METRICS the training report whose findings score best as the only answer on val.

  The result has the form of `find_constants` and can be merged with it. All distinct training reports are tried on all
  val reports; more than MAX_LABELED of either are thinned out evenly in alphabetical order. Uncertain findings don't
  count as positive, and macro is the mean over the findings that occur in val, as in `metrics/clinical_f1.py`.

  Args:
    labeler: its findings are those that count.
    val_labels: one mapping per val report, where labels are known better than from the reports.
  """
  _, reports = apply_protocol("r2gen", [], train_reports, tokenizer, cleaning, max_length)
  candidates = _thin_out(sorted(set(reports)), MAX_LABELED)
  order: list[int] = _thin_out(sorted(range(len(val_reports)), key=lambda i: val_reports[i]), MAX_LABELED)
  reference_labels = ([val_labels[i] for i in order] if val_labels is not None else
                      labeler.label([val_reports[i] for i in order]))
  scores = compute_constant_f1(encode_labels(reference_labels, labeler.findings),
                               encode_labels(labeler.label(candidates), labeler.findings))
  return {f"{average}_F1": {"report": candidates[values.argmax()], "val_score": float(values.max())}
          for average, values in scores.items()}


def _thin_out(items: list, max_items: int) -> list:
  """Returns all items, or `max_items` of them at even distances."""
  if len(items) <= max_items:
    return items
  return [items[i] for i in np.linspace(0, len(items) - 1, max_items).round().astype(int)]


def _select_candidates(reports: list[str], references: list[str]) -> list[str]:
  """Returns at most MAX_CANDIDATES distinct reports, frequent and typical ones, in alphabetical order."""
  counts = collections.Counter(reports)
  distinct = sorted(counts)
  if len(distinct) <= MAX_CANDIDATES:
    return distinct
  frequent = sorted(distinct, key=lambda report: -counts[report])[:MAX_CANDIDATES // 2]
  overlap = dict(zip(distinct, compute_word_f1(distinct, references)))
  rest = sorted(set(distinct) - set(frequent))
  typical = sorted(rest, key=lambda report: -overlap[report])
  return sorted(frequent + typical[:MAX_CANDIDATES - len(frequent)])


def _find_best_by_meteor(candidates: list[str], references: list[str], meteor: Meteor) -> dict | None:
  """Returns the candidate with the best METEOR and that score, or None without Java."""
  best = None
  for i in (-compute_word_f1(candidates, references)).argsort(kind="stable")[:METEOR_SHORTLIST]:
    try:
      score, _ = meteor.score(references, [candidates[i]] * len(references))
    except JavaUnavailable:
      return None
    if best is None or score > best["val_score"]:
      best = {"report": candidates[i], "val_score": score}
  return best


def find_nearest(features: np.ndarray, train_features: np.ndarray, count: int, subjects: Sequence[str] | None = None,
                 train_subjects: Sequence[str] | None = None) -> np.ndarray:
  """Returns the indices int [B, K] of the training images nearest to each image by cosine, nearest first.

  Args:
    features: [B, C], pooled features of the query images.
    train_features: [M, C].
    count: K; reduced to M where that is smaller.
    subjects: B subjects: training images of the same subject are skipped. Where fewer than K images are left, the
      last indices of the row are -1. None: no image is skipped.
    train_subjects: M subjects, given together with `subjects`.
  """
  count = min(count, len(train_features))
  train = _l2_normalize(train_features)
  images_by_subject = collections.defaultdict(list)
  if subjects is not None and train_subjects is not None:
    for index, subject in enumerate(train_subjects):
      images_by_subject[subject].append(index)
  rows = []
  for start in range(0, len(features), 256):                      # 256 x 270,790 similarities are 277 MB
    similarity = _l2_normalize(features[start:start + 256]) @ train.T     # [256, M]
    if subjects is not None:
      for row, subject in enumerate(subjects[start:start + 256]):
        similarity[row, images_by_subject.get(subject, [])] = -np.inf
    nearest = np.sort(np.argpartition(-similarity, count - 1, axis=1)[:, :count])      # [256, K], by index
    similarity = np.take_along_axis(similarity, nearest, 1)
    order = np.argsort(-similarity, axis=1, kind="stable")
    rows.append(np.take_along_axis(np.where(np.isneginf(similarity), -1, nearest), order, 1))
  return np.concatenate(rows)


def find_medoid(reports: Sequence[str]) -> int:
  """Returns the index of the report with the highest mean word F1 with the others, words counted as multisets.

  The k-th occurrence of a word is a feature of its own, so that the overlap of two multisets is the dot product of two
  binary vectors, and all pairs are one matrix product.
  """
  feature_ids, features_by_report = {}, []
  for report in reports:
    occurrences = collections.Counter()
    features_by_report.append([])
    for word in report.split():
      occurrences[word] += 1
      features_by_report[-1].append(feature_ids.setdefault((word, occurrences[word]), len(feature_ids)))
  has_feature = np.zeros((len(reports), max(1, len(feature_ids))), np.float32)      # [number of reports, features]
  for row, features in enumerate(features_by_report):
    has_feature[row, features] = 1
  lengths = has_feature.sum(1)
  word_f1s = 2 * (has_feature @ has_feature.T).astype(np.float64) / np.maximum(1, lengths[:, None] + lengths)
  np.fill_diagonal(word_f1s, 0)
  return int(word_f1s.sum(1).argmax())


def nearest_reports(features: np.ndarray, train_features: np.ndarray, train_reports: Sequence[str],
                    subjects: Sequence[str] | None = None, train_subjects: Sequence[str] | None = None
                    ) -> tuple[list[str], list[str]]:
  """Returns the nearest and the medoid report of B images, from features [B, C] and [M, C] (see `find_nearest`).

  Both are empty for an image whose subject is that of all training images.

  Raises:
    ValueError: the numbers of training images and reports differ.
  """
  if len(train_features) != len(train_reports):
    raise ValueError(f"features of {len(train_features)} train images for {len(train_reports)} reports")
  indices = find_nearest(features, train_features, NUM_NEIGHBORS, subjects, train_subjects)
  rows: list[list[int]] = indices.tolist()
  neighbors = [[train_reports[i] for i in row if i >= 0] or [""] for row in rows]
  return [reports[0] for reports in neighbors], [reports[find_medoid(reports)] for reports in neighbors]


def _l2_normalize(vectors: np.ndarray) -> np.ndarray:
  vectors = np.asarray(vectors, np.float32)
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
