"""The studies of an HTML report as its script reads them: JSON columns, and base64 blobs that are decoded when shown.

What decides whether a study is listed (texts, scores, labels) is in the columns, a few hundred bytes per study. Images
and attention maps are in elements of their own after the script, so that the browser can draw and use the page before
it has read them.

Shapes: V views, N patches per view, W words of a report.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np

from mcsam_jax.findings import LABEL_VALUES

if TYPE_CHECKING:                          # these import JAX, which a page of scored files doesn't need
  from mcsam_jax.explain.explanations import Explanation
  from mcsam_jax.explain.slots import SlotDescription

LOG_PROB_SCALE = 4000           # steps per nat: a log-probability is stored in two bytes, down to -16.4


@dataclasses.dataclass
class PageData:
  """The data of all studies of a page.

  Attributes:
    columns: JSON columns; those of studies have one entry per study.
    blobs: (element id, base64) pairs: maps-12 holds the attention maps of study 12, image-12-0 its first image.
  """
  columns: dict
  blobs: list[tuple[str, str]]


def build_page_data(studies: Iterable[Mapping], findings: Sequence[str],
                    save_image: Callable[[str, bytes], None] | None, slots: "Sequence[SlotDescription]",
                    train_reports: Sequence[str]) -> PageData:
  """Returns the data of a page; studies are read one at a time.

  Args:
    studies: as in `page.write_page`.
    findings: the findings whose labels and mentions are stored.
    save_image: writes a JPEG under a file name; None: images become blobs.
    slots: descriptions of all memory slots; those that a study's explanation names are stored.
    train_reports: one per training record; those that a study's explanation names are stored.
  """
  columns = {"findings": list(findings), "id": [], "warnings": [], "generated": [], "reference": [], "views": [],
             "scores": {}, "meanLogProb": [], "labels": [], "differences": [], "generatedMentions": [],
             "referenceMentions": [], "words": [], "logProbs": [], "slots": [], "neighbors": [],
             "slotDescriptions": {}, "trainReports": {}}
  blobs, scores = [], {}
  for number, study in enumerate(studies):
    columns["id"].append(study["id"])
    columns["warnings"].append(list(study.get("warnings", ())))
    columns["generated"].append(study["generated"])
    columns["reference"].append(study.get("reference"))
    columns["labels"].append(_encode_labels(study, findings))
    columns["differences"].append(_encode_differences(study, findings))
    columns["generatedMentions"].append(_encode_mentions(study.get("mentions", ()), findings))
    columns["referenceMentions"].append(_encode_mentions(study.get("reference_mentions", ()), findings))
    for metric, value in study.get("scores", {}).items():
      scores.setdefault(metric, {})[number] = value
    columns["views"].append(list(study["views"]))
    for view, jpeg in enumerate(study["images"]):
      if save_image:
        save_image(f"{number}-{view}.jpg", jpeg)
      else:
        blobs.append((f"image-{number}-{view}", base64.b64encode(jpeg).decode()))
    explanation = study.get("explanation")
    for column, value in _encode_explanation(explanation, study["generated"]).items():
      columns[column].append(value)
    if explanation and explanation.maps.size:
      blobs.append((f"maps-{number}", _encode_array(explanation.maps)))
    for slot, _ in explanation.slots if explanation and slots else ():
      columns["slotDescriptions"].setdefault(slot, [slots[slot].topic, slots[slot].topic_words, slots[slot].top_words])
    for record, _ in explanation.neighbors if explanation else ():
      columns["trainReports"].setdefault(record, train_reports[record])
  num_studies = len(columns["id"])
  columns["scores"] = {metric: [_round_score(values.get(number)) for number in range(num_studies)]
                       for metric, values in scores.items() if any(value is not None for value in values.values())}
  return PageData(columns, blobs)


def to_json(data) -> str:
  """Returns JSON for a script element, escaped so that no text can end the element or start a comment."""
  text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
  return (text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
          .replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _encode_explanation(explanation: "Explanation | None", generated: str) -> dict:
  """Returns the entries of one study in the columns that hold its explanation."""
  if explanation is None:
    return {"meanLogProb": None, "words": None, "logProbs": "", "slots": [], "neighbors": []}
  words, log_probs = explanation.words, explanation.log_probs
  return {
      "meanLogProb": round(float(np.mean(log_probs)), 3) if words else None,
      "words": words if " ".join(words) != generated else None,               # None: split the report at spaces
      "logProbs": _encode_array(np.clip(np.round(-LOG_PROB_SCALE * log_probs), 0, 65535).astype("<u2")),
      "slots": [[slot, round(1000 * weight)] for slot, weight in explanation.slots],
      "neighbors": [[record, round(100 * cosine)] for record, cosine in explanation.neighbors]}


def _encode_labels(study: Mapping, findings: Sequence[str]) -> str:
  """Returns one hexadecimal digit per finding, 4 * reference label + generated label; "" without labels."""
  if study.get("labels") is None:
    return ""
  reference = study.get("reference_labels") or {}
  return "".join(f"{4 * LABEL_VALUES.index(reference.get(finding, 'absent')) + LABEL_VALUES.index(label):x}"
                 for finding in findings for label in [study["labels"].get(finding, "absent")])


def _encode_differences(study: Mapping, findings: Sequence[str]) -> dict[int, str] | None:
  """Returns {index of the finding: how its details differ}; None if details aren't compared."""
  differences = study.get("differences")
  if differences is None:
    return None
  return {index: differences[finding] for index, finding in enumerate(findings) if finding in differences}


def _encode_mentions(mentions: Iterable, findings: Sequence[str]) -> list[int]:
  """Returns (start, end, finding, label) of each mention, concatenated; mentions of other findings are left out."""
  indices = {finding: index for index, finding in enumerate(findings)}
  return [value for mention in sorted(mentions, key=lambda mention: (mention.start, -mention.end))
          if mention.finding in indices
          for value in (mention.start, mention.end, indices[mention.finding], LABEL_VALUES.index(mention.label))]


def _encode_array(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode()


def _round_score(value: float | None) -> float | None:
  return None if value is None or not np.isfinite(value) else round(value, 4)
