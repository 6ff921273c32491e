"""Studies as the page's script reads them: columns of JSON, and lumps of base64 that are decoded when they are shown.

What decides whether a study is listed (texts, scores, labels) stands in columns, a few hundred bytes a study. What is
only looked at (images, heat maps) stands in elements of its own behind the script, so that the page is drawn and can
be used before the browser has read them.

Shapes: W words of a report, V views, P patches a view.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json

import numpy as np

from mcsam_jax.findings import LABEL_VALUES

PROBABILITY_STEPS = 4000        # a nat: log-probabilities are kept in two bytes, down to -16.4


@dataclasses.dataclass
class Columns:
  """Of all studies of a page."""
  data: dict                          # for JSON
  lumps: list[tuple[str, str]]        # name and base64: m12 the maps of study 12, i12-0 its first image


def columns_of(studies: Iterable[Mapping], findings: Sequence[str], save_image: Callable[[str, bytes], None] | None,
               slots: Sequence, train_reports: Sequence[str]) -> Columns:
  """Returns the columns of studies, which are taken one by one.

  Args:
    studies: see `page.write_page`.
    findings: those of the labels that the page marks.
    save_image: writes a JPEG under a name; None: images become lumps.
    slots: what each slot of the memory stands for (`why.Slot`); of those that a study names the words are kept.
    train_reports: of which those that a study names are kept.
  """
  data = {"findings": list(findings), "id": [], "warnings": [], "gen": [], "ref": [], "views": [], "scores": {}, "logp": [],
          "labels": [], "genMarks": [], "refMarks": [], "words": [], "prob": [], "slots": [], "near": [],
          "slotWords": {}, "train": {}}
  lumps, metrics = [], {}
  for number, study in enumerate(studies):
    data["id"].append(study["id"])
    data["warnings"].append(list(study.get("warnings", ())))
    data["gen"].append(study["generated"])
    data["ref"].append(study.get("reference"))
    data["labels"].append(_labels(study, findings))
    data["genMarks"].append(_marks(study.get("mentions", ()), findings))
    data["refMarks"].append(_marks(study.get("reference_mentions", ()), findings))
    for metric, value in study.get("scores", {}).items():
      metrics.setdefault(metric, {})[number] = value
    data["views"].append(list(study["views"]))
    for view, jpeg in enumerate(study["images"]):
      if save_image:
        save_image(f"{number}-{view}.jpg", jpeg)
      else:
        lumps.append((f"i{number}-{view}", base64.b64encode(jpeg).decode()))
    why = study.get("why")
    data["logp"].append(round(float(np.mean(why.log_probs)), 3) if why and len(why.words) else None)
    data["words"].append(why.words if why and " ".join(why.words) != study["generated"] else None)
    data["prob"].append(_base64(np.clip(np.round(-PROBABILITY_STEPS * why.log_probs), 0, 65535).astype("<u2"))
                        if why else "")
    data["slots"].append([[slot, round(1000 * weight)] for slot, weight in why.slots] if why else [])
    data["near"].append([[record, round(100 * cosine)] for record, cosine in why.neighbours] if why else [])
    if why and why.maps.size:
      lumps.append((f"m{number}", _base64(why.maps)))
    for slot, _ in why.slots if why and slots else ():
      data["slotWords"].setdefault(slot, [slots[slot].topic, slots[slot].began, slots[slot].answers])
    for record, _ in why.neighbours if why else ():
      data["train"].setdefault(record, train_reports[record])
  count = len(data["id"])
  data["scores"] = {metric: [_rounded(values.get(number)) for number in range(count)]
                    for metric, values in metrics.items() if any(value is not None for value in values.values())}
  return Columns(data, lumps)


def to_json(data) -> str:
  """Returns JSON that may stand inside a script element: no text in it can end the element, or begin a comment."""
  text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
  return (text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
          .replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _labels(study: Mapping, findings: Sequence[str]) -> str:
  """Returns a hexadecimal digit a finding, 4 * the reference's label + the report's; "" without labels."""
  if study.get("labels") is None:
    return ""
  reference = study.get("reference_labels") or {}
  return "".join(f"{4 * LABEL_VALUES.index(reference.get(finding, 'absent')) + LABEL_VALUES.index(label):x}"
                 for finding in findings for label in [study["labels"].get(finding, "absent")])


def _marks(mentions: Iterable, findings: Sequence[str]) -> list[int]:
  """Returns start, end, finding, label of each mention, one after the other."""
  known = {finding: number for number, finding in enumerate(findings)}
  return [value for mention in sorted(mentions, key=lambda mention: (mention.start, -mention.end))
          if mention.finding in known
          for value in (mention.start, mention.end, known[mention.finding], LABEL_VALUES.index(mention.label))]


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode()


def _rounded(value: float | None) -> float | None:
  return None if value is None or not np.isfinite(value) else round(value, 4)
