"""Studies and scores for tests of the HTML report, made without a model: phantoms with synthetic explanations.

Shapes: V views, W words.
"""

import numpy as np

from input_pipeline.datasets.phantom.dataset import make_record
from input_pipeline.datasets.phantom.patient import sample_findings
from input_pipeline.datasets.phantom.reports import find_mentions, read_labels, write_report
from mcsam_jax.explain.explanations import Explanation
from mcsam_jax.explain.slots import SlotDescription

GRID = 7
SLOTS = [SlotDescription(number % 5, [f"topic{number % 5}", "word"], ["effusion", f"word{number}"])
         for number in range(16)]
TRAIN = [f"Report {number} of train." for number in range(40)]


def make_studies(count: int, num_pictures: int = 12) -> list[dict]:
  """Returns studies as `page.write_page` takes them, the same for the same arguments.

  Args:
    count: number of studies.
    num_pictures: number of different phantoms, since drawing them takes most of the time.
  """
  records = [make_record(0, "test", number) for number in range(num_pictures)]
  studies = []
  for number in range(count):
    rng = np.random.default_rng(number)
    findings = sample_findings(rng)
    reference, _ = write_report(findings, rng)
    reported = findings[1:] if rng.random() < 0.3 else findings                  # one is missed
    if rng.random() < 0.2:                                                       # some are invented
      reported = {finding.name: finding for finding in (*reported, *sample_findings(rng))}.values()
    generated = " . ".join(write_report(tuple(reported), rng)[0].lower().rstrip(".").split(". ")) + " ."
    record = records[number % num_pictures]
    words = generated.split()
    studies.append({
        "id": f"study-{number:05d}", "generated": generated, "reference": reference,
        "images": record["images"], "views": record["views"],
        "scores": {"BLEU_4": float(rng.random()), "CIDEr": float(rng.gamma(2)), "METEOR": None},
        "labels": read_labels(generated), "reference_labels": read_labels(reference),
        "mentions": find_mentions(generated), "reference_mentions": find_mentions(reference),
        "explanation": Explanation(words, -rng.gamma(0.6, 0.8, len(words)).astype(np.float32),
                   make_attention_maps(rng.random((len(words), len(record["images"]), 2))),
                   [(int(slot), 0.2 / (1 + rank)) for rank, slot in enumerate(rng.permutation(len(SLOTS))[:6])],
                   [(int(near), 0.5) for near in rng.permutation(len(TRAIN))[:3]])})
  return studies


def make_attention_maps(centers: np.ndarray) -> np.ndarray:
  """Returns maps uint8 [W, V, GRID * GRID], each with one bright spot at its center [W, V, (x, y)] in 0..1."""
  x, y = (np.arange(GRID * GRID) % GRID + 0.5) / GRID, (np.arange(GRID * GRID) // GRID + 0.5) / GRID
  distance = (x - centers[..., :1]) ** 2 + (y - centers[..., 1:]) ** 2
  return np.round(255 * np.exp(-distance / 0.04)).astype(np.uint8)


def make_scores(studies: list[dict], findings) -> dict:
  """Returns the part of `scoring.score_reports` that the HTML report shows: real label scores, invented metrics."""
  from mcsam_jax.metrics.clinical_f1 import compute_clinical_f1
  labels = compute_clinical_f1([study["reference_labels"] for study in studies],
                               [study["labels"] for study in studies], findings)
  nlg = {"BLEU_1": 0.74, "BLEU_4": 0.53, "METEOR": None, "CIDEr": 3.2}
  interval = lambda value: {"low": value - 0.04, "high": value + 0.04}
  return {
      "num_studies": len(studies), "nlg": {"r2gen": nlg}, "labels": labels,
      "controls": {"shuffled_images": {"nlg": {"r2gen": {"BLEU_1": 0.6, "BLEU_4": 0.36, "CIDEr": 1.0}},
                                       "labels": labels, "CIDEr_difference": {"mean": 2.2, "low": 2.0, "high": 2.4}}},
      "baselines": {"constant": {"nlg": {"BLEU_1": 0.67, "BLEU_4": 0.41, "CIDEr": 1.7}, "labels": None}},
      "intervals": {"nlg": {"r2gen": {metric: interval(value) for metric, value in nlg.items() if value}},
                    "labels": {"micro": {"f1": interval(labels["micro"]["f1"])}, "per_finding": {
                        name: {"f1": interval(rates["f1"])} for name, rates in labels["per_finding"].items()}}},
      "distinct_reports": 183, "most_common_report_fraction": 0.24, "copied_from_train_fraction": 0.41,
      "mean_num_words": 32.8, "unk_fraction": {"reports": 0, "words": 0.0}, "pretraining_data": "none", "notes": {}}
