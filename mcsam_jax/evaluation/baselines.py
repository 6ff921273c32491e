"""Reports that no model wrote: what a score must be compared with before it means anything.

  constant  one train report said of every study: the one that is best on val,
            looked for once for each metric, and for micro- and macro-F1 of findings.
  nearest   the report of the train image that looks most alike.
  medoid    of the 30 train images that look most alike, the report that has most in common with the others'.
            Images of the same subject, which train has where it is itself evaluated, are passed over by both.

  nearest_own, medoid_own   the same two, by what the evaluated model makes of images itself (own_features.py).

The first three depend on the data alone, and on features of the encoder as it was before training.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib

import numpy as np

from mcsam_jax.metrics.clinical_f1 import constant_f1, label_codes, read_all
from mcsam_jax.metrics.constant_report import constant_scores, word_f1
from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import apply_protocol

NUM_NEIGHBOURS = 30
MAX_CANDIDATES = 3000         # distinct train reports that are tried as constants; IU X-Ray has 1,700
MAX_REFERENCES = 500          # val reports that they are tried on; IU X-Ray has 296
METEOR_SHORTLIST = 20         # candidates that METEOR is computed for
MAX_LABELLED = 5000           # reports of either split whose findings are read
LABEL_METRICS = ("micro_F1", "macro_F1")      # by what a constant is chosen for its findings


def constant_baseline(train_reports: Sequence[str], val_reports: Sequence[str], tokenizer, cleaning: str,
                      max_length: int, meteor: Meteor | None = None) -> dict[str, dict | None]:
  """Returns for each metric the train report that scores best as the only answer on val, under r2gen.

  The result can be stored as JSON: {metric: {"report", "val_score"}}, None for METEOR without Java. It
  holds text of train reports.

  The search is exact but for three limits. Of more than MAX_CANDIDATES distinct
  reports, half are the most frequent ones and half those whose words agree best
  with those of val. Of more than MAX_REFERENCES val reports, every so many-th in
  alphabetical order is taken. METEOR is computed for the METEOR_SHORTLIST candidates
  whose words agree best, as METEOR is at heart an F measure of words.
  """
  references, reports = apply_protocol("r2gen", val_reports, train_reports, tokenizer, cleaning, max_length)
  references = _evenly(sorted(references), MAX_REFERENCES)
  candidates = _candidates(reports, references)
  scores = constant_scores(candidates, references)                          # metric -> [C]
  best = {metric: {"report": candidates[values.argmax()], "val_score": float(values.max())}
          for metric, values in scores.items()}
  with contextlib.nullcontext(meteor) if meteor else Meteor() as meteor:
    best["METEOR"] = _best_by_meteor(candidates, references, meteor)
  return {metric: best[metric] for metric in METRICS}


def constant_of_labels(train_reports: Sequence[str], val_reports: Sequence[str], tokenizer, cleaning: str,
                       max_length: int, read_labels: Callable, findings: Sequence[str],
                       val_labels: Sequence[Mapping[str, str]] | None = None) -> dict[str, dict]:
  """Returns for each of LABEL_METRICS the train report whose findings score best as the only answer on val.

  It is like `constant_baseline`, with which it can be joined: all distinct train reports are tried on all val reports,
  of more than MAX_LABELLED every so many-th in alphabetical order. Uncertain is not positive, and macro is the mean
  over the findings that val has, as in the scores of `labels.py`.

  Args:
    read_labels: reads {finding: label} from a report, or has a method `read` for many.
    findings: those that count.
    val_labels: of the val reports, where they are known better than from these.
  """
  _, reports = apply_protocol("r2gen", [], train_reports, tokenizer, cleaning, max_length)
  candidates = _evenly(sorted(set(reports)), MAX_LABELLED)
  order = _evenly(sorted(range(len(val_reports)), key=val_reports.__getitem__), MAX_LABELLED)
  truth = ([val_labels[i] for i in order] if val_labels is not None else
           read_all(read_labels, [val_reports[i] for i in order]))
  scores = constant_f1(label_codes(truth, findings), label_codes(read_all(read_labels, candidates), findings))
  return {f"{average}_F1": {"report": candidates[values.argmax()], "val_score": float(values.max())}
          for average, values in scores.items()}


def _evenly(things: list, most: int) -> list:
  """Returns all, or every so many-th of more than `most`."""
  if len(things) <= most:
    return things
  return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int)]


def _candidates(reports: list[str], references: list[str]) -> list[str]:
  """Returns distinct reports in alphabetical order, at most MAX_CANDIDATES."""
  counts = collections.Counter(reports)
  distinct = sorted(counts)
  if len(distinct) <= MAX_CANDIDATES:
    return distinct
  frequent = sorted(distinct, key=lambda report: -counts[report])[:MAX_CANDIDATES // 2]
  overlap = dict(zip(distinct, word_f1(distinct, references)))
  rest = sorted(set(distinct) - set(frequent))
  typical = sorted(rest, key=lambda report: -overlap[report])
  return sorted(frequent + typical[:MAX_CANDIDATES - len(frequent)])


def _best_by_meteor(candidates: list[str], references: list[str], meteor: Meteor) -> dict | None:
  """Returns the candidate with the best METEOR and that score, or None where METEOR can't be computed."""
  best = None
  for i in (-word_f1(candidates, references)).argsort(kind="stable")[:METEOR_SHORTLIST]:
    try:
      value, _ = meteor.score(references, [candidates[i]] * len(references))
    except JavaUnavailable:
      return None
    if best is None or value > best["val_score"]:
      best = {"report": candidates[i], "val_score": value}
  return best


def nearest(features: np.ndarray, train_features: np.ndarray, count: int, subjects: Sequence[str] | None = None,
            train_subjects: Sequence[str] | None = None) -> np.ndarray:
  """Returns int [m, k]: the `count` train images nearest to each image, nearest first, by cosine.

  Args:
    features: [m, C], pooled features of the images that are asked for.
    train_features: [n, C].
    count: k; fewer where n is less.
    subjects, train_subjects: m and n: images of the same subject are passed over, with -1 in the place of those that
      are lacking then; None: all count.
  """
  count = min(count, len(train_features))
  train = _unit(train_features)
  images_of = collections.defaultdict(list)
  if subjects is not None:
    for number, subject in enumerate(train_subjects):
      images_of[subject].append(number)
  rows = []
  for begin in range(0, len(features), 256):                      # 256 x 270,790 similarities are 277 MB
    similarity = _unit(features[begin:begin + 256]) @ train.T     # [256, n]
    for row, subject in enumerate(subjects[begin:begin + 256] if images_of else ()):
      similarity[row, images_of.get(subject, [])] = -np.inf
    among = np.sort(np.argpartition(-similarity, count - 1, axis=1)[:, :count])
    similarity = np.take_along_axis(similarity, among, 1)
    order = np.argsort(-similarity, axis=1, kind="stable")
    rows.append(np.take_along_axis(np.where(np.isneginf(similarity), -1, among), order, 1))
  return np.concatenate(rows)


def medoid(reports: Sequence[str]) -> int:
  """Returns the index of the report with the highest mean word F1 (of multisets) with the others.

  The k-th occurrence of a word is a thing of its own, so that multisets share as many words as sets share things, and
  all pairs are one product of matrices.
  """
  number, places = {}, []
  for report in reports:
    seen = collections.Counter()
    places.append([])
    for word in report.split():
      seen[word] += 1
      places[-1].append(number.setdefault((word, seen[word]), len(number)))
  holds = np.zeros((len(reports), max(1, len(number))), np.float32)             # [m, things]
  for row, things in enumerate(places):
    holds[row, things] = 1
  totals = holds.sum(1)
  overlap = 2 * (holds @ holds.T).astype(np.float64) / np.maximum(1, totals[:, None] + totals)
  np.fill_diagonal(overlap, 0)
  return int(overlap.sum(1).argmax())


def neighbour_reports(features: np.ndarray, train_features: np.ndarray, train_reports: Sequence[str],
                      subjects: Sequence[str] | None = None, train_subjects: Sequence[str] | None = None
                      ) -> tuple[list[str], list[str]]:
  """Returns the `nearest` and the `medoid` report of m images, from features [m, C] and [n, C].

  They are empty where all train images are of the same subject (see `nearest`).
  """
  if len(train_features) != len(train_reports):
    raise ValueError(f"features of {len(train_features)} train images for {len(train_reports)} reports")
  indices = nearest(features, train_features, NUM_NEIGHBOURS, subjects, train_subjects)
  near = [[train_reports[i] for i in row[row >= 0]] or [""] for row in indices]
  return [reports[0] for reports in near], [reports[medoid(reports)] for reports in near]


def _unit(vectors: np.ndarray) -> np.ndarray:
  vectors = np.asarray(vectors, np.float32)
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
