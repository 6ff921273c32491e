"""Reports of phantom studies, and the exact reader of what a report states.

Each statement has a few wordings, one of them clearly the commonest, and what
is normal is said more often where there is little else to say. Every drawn
finding is stated once, with the side, place and severity that it was drawn
with. `read_findings` gets all of it back from any text in this language: raw,
cleaned (lower case, no punctuation but full stops), or written by a model.
"""

from collections.abc import Iterator
import dataclasses
import re

import numpy as np

from input_pipeline.datasets.phantom.patient import Finding, PHANTOM_FINDINGS
from mcsam_jax.findings import FindingMention, FINDINGS

FIRST_WORDING_PROBABILITY = 0.6                        # of a statement's first wording; the others share the rest
WORDINGS = {
    "normal heart": ("The heart is normal in size.", "Heart size is within normal limits.",
                     "The cardiac silhouette is not enlarged."),
    "normal mediastinum": ("The mediastinal contours are normal.", "The mediastinum is unremarkable."),
    "clear lungs": ("The lungs are clear.", "The lungs are clear without focal consolidation.",
                    "Both lungs are clear."),
    "no consolidation": ("No focal consolidation.", "There is no focal consolidation."),
    "normal pleura": ("No pleural effusion or pneumothorax.", "There is no pneumothorax or pleural effusion.",
                      "No pneumothorax or pleural effusion is seen."),
    "no effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "no pneumothorax": ("No pneumothorax.", "There is no pneumothorax."),
    "normal bones": ("The osseous structures are intact.", "No acute bony abnormality."),
    "Cardiomegaly": ("There is {severity} cardiomegaly.", "The heart is {severity}ly enlarged."),
    "Lung Lesion": ("There is a {size} mm nodule in the {side} {zone} zone.",
                    "A round {size} mm nodule is seen in the {side} {zone} lung."),
    "Edema": ("There is {severity} pulmonary edema.",
              "Perihilar haze and prominent vessels represent {severity} pulmonary edema."),
    "Consolidation": ("There is focal consolidation in the {side} {zone} zone.",
                      "A patchy consolidation is present in the {side} {zone} lung."),
    "Atelectasis": ("There is linear atelectasis at the {side} base.",
                    "Bandlike opacities at the {side} base represent atelectasis."),
    "bilateral Atelectasis": ("There is bibasilar linear atelectasis.",
                              "Bandlike opacities at both lung bases represent atelectasis."),
    "Pneumothorax": ("There is a {severity} {side} pneumothorax.",
                     "A {severity} pneumothorax is seen at the {side} apex."),
    "Pleural Effusion": ("There is a {severity} {side} pleural effusion.",
                         "A {severity} pleural effusion is present on the {side}."),
    "bilateral Pleural Effusion": ("There are {severity} bilateral pleural effusions.",
                                   "{Severity} pleural effusions are present on both sides."),
    "catheter": ("A {side} central venous catheter ends in the superior vena cava.",
                 "A {side} central venous catheter is in place."),
    "tube": ("An endotracheal tube ends above the carina.", "An endotracheal tube is in place."),
    "pacemaker": ("A {side} chest pacemaker with two leads is present.",
                  "A {side} chest pacemaker is in place."),
    "wires": ("Median sternotomy wires are present.", "Median sternotomy wires are intact."),
}
IMPRESSIONS = {
    "Cardiomegaly": "{Severity} cardiomegaly.",
    "Lung Lesion": "{Side} {zone} zone nodule of {size} mm.",
    "Edema": "{Severity} pulmonary edema.",
    "Consolidation": "{Side} {zone} zone consolidation.",
    "Atelectasis": "{Side} basilar atelectasis.",
    "Pneumothorax": "{Severity} {side} pneumothorax.",
    "Pleural Effusion": "{Severity} {side} pleural effusion.",
}
NORMAL_IMPRESSION = "No acute cardiopulmonary abnormality."
LUNG_FINDINGS = ("Edema", "Consolidation", "Lung Lesion", "Atelectasis")
PLEURAL_FINDINGS = ("Pleural Effusion", "Pneumothorax")


def write_report(findings: tuple[Finding, ...], rng: np.random.Generator) -> tuple[str, str]:
  """Returns the sections findings and impression of a study."""
  drawn = {finding.name: finding for finding in findings}

  def say(statement: str, finding: Finding | None = None) -> str:
    words = WORDINGS[statement]
    rest = (1 - FIRST_WORDING_PROBABILITY) / (len(words) - 1)
    chosen = words[rng.choice(len(words), p=[FIRST_WORDING_PROBABILITY] + [rest] * (len(words) - 1))]
    return _fill(chosen, finding) if finding else chosen

  def state(name: str) -> str:
    finding = drawn[name]
    bilateral = f"bilateral {name}"
    return say(bilateral if finding.side == "bilateral" and bilateral in WORDINGS else name, finding)

  def often() -> bool:
    return rng.random() < 1.05 - 0.25 * len(drawn)

  heart = [state("Cardiomegaly") if "Cardiomegaly" in drawn else say("normal heart")]
  mediastinum = [say("normal mediastinum")] if often() else []
  lungs = [state(name) for name in LUNG_FINDINGS if name in drawn]
  if not lungs:
    lungs = [say("clear lungs")]
  elif "Consolidation" not in drawn and rng.random() < 0.5:
    lungs.append(say("no consolidation"))
  pleura = [state(name) for name in PLEURAL_FINDINGS if name in drawn]
  if not pleura:
    pleura = [say("normal pleura")]
  elif len(pleura) == 1:
    pleura.append(say("no pneumothorax" if "Pleural Effusion" in drawn else "no effusion"))
  bones = [say("normal bones")] if often() else []
  device = drawn.get("Support Devices")
  devices = [say(device.kind, device)] if device else []
  if rng.random() < 0.25:                    # some readers begin with the lungs
    sentences = lungs + pleura + heart + mediastinum + bones + devices
  else:
    sentences = heart + mediastinum + lungs + pleura + bones + devices
  stated = [_fill(IMPRESSIONS[finding.name], finding) for finding in findings if finding.name in IMPRESSIONS]
  return " ".join(sentences), " ".join(stated) or NORMAL_IMPRESSION


def _fill(words: str, finding: Finding) -> str:
  return words.format(side=finding.side, Side=finding.side.capitalize(), zone=finding.zone,
                      severity=finding.severity, Severity=finding.severity.capitalize(),
                      size=round(finding.extent))


@dataclasses.dataclass(frozen=True)
class Statement:
  """What a report says of one finding; what it does not say is "" or 0."""
  state: str = "absent"                      # one of absent, negative, positive
  side: str = ""
  zone: str = ""
  severity: str = ""
  kind: str = ""                             # of a device
  size: int = 0                              # of a nodule, mm


TERMS = {
    "Cardiomegaly": r"cardiomegaly|\b(?:heart|silhouette)\b.*?\benlarged|\benlarged (?:heart|cardiac)",
    "Lung Lesion": r"\b(?:nodules?|mass(?:es)?|lesions?)\b",
    "Edema": r"\bo?edema\b",
    "Consolidation": r"\bconsolidations?\b",
    "Atelectasis": r"\batelecta(?:sis|ses|tic)\b",
    "Pneumothorax": r"\bpneumothora(?:x|ces)\b",
    "Pleural Effusion": r"\beffusions?\b",
    "Support Devices": r"\b(?:catheter|tube|pacemaker|sternotomy|leads)\b",
}
NORMAL_TERMS = {                             # say that something is absent without naming it
    r"\b(?:heart|cardiac)\b.*\bnormal\b": ("Cardiomegaly",),
    r"\blungs?\b.*\bclear\b": LUNG_FINDINGS,
}
NEGATION = re.compile(                       # reaches to the end, or to a word that begins something else
    r"\b(?:no|not|without|free of|negative for)\b(?!.*\b(?:but|however|there (?:is|are)|with)\b)")
ATTRIBUTES = {
    "side": {r"right": "right", r"left": "left", r"bilateral|bibasilar|both": "bilateral"},
    "zone": {r"upper": "upper", r"mid": "mid", r"lower|bases?|basilar|bibasilar": "lower"},
    "severity": {r"mild(?:ly)?": "mild", r"moderate(?:ly)?": "moderate", r"marked(?:ly)?": "marked",
                 r"severe": "severe", r"small": "small", r"large": "large"},
    "kind": {r"catheter": "catheter", r"endotracheal|tube": "tube", r"pacemaker": "pacemaker",
             r"sternotomy|wires": "wires"},
}
STATED = {                                   # the attributes that each finding has
    "Cardiomegaly": ("severity",), "Lung Lesion": ("side", "zone"), "Edema": ("severity",),
    "Consolidation": ("side", "zone"), "Atelectasis": ("side", "zone"), "Pneumothorax": ("side", "severity"),
    "Pleural Effusion": ("side", "severity"), "Support Devices": ("side", "kind"),
}


def read_findings(report: str) -> dict[str, Statement]:
  """Returns what a report states of each of PHANTOM_FINDINGS; positive statements outweigh negative ones."""
  statements = {name: Statement() for name in PHANTOM_FINDINGS}
  for sentence in re.sub(r"[^a-z0-9.]+", " ", report.lower()).split("."):
    for name, state, match in _named(sentence):
      if state == "positive" and statements[name].state != "positive":
        statements[name] = _read_attributes(name, sentence, match)
      elif statements[name].state == "absent":
        statements[name] = Statement(state)
  return statements


def _named(sentence: str) -> Iterator[tuple[str, str, re.Match]]:
  """Yields the findings that a sentence names, or says to be absent, with their state and the words that do."""
  for pattern, names in NORMAL_TERMS.items():
    match = re.search(pattern, sentence)
    if match and not NEGATION.search(match[0]):
      yield from ((name, "negative", match) for name in names)
  for name, pattern in TERMS.items():
    for match in re.finditer(pattern, sentence):
      yield name, "negative" if NEGATION.search(sentence[:match.end()]) else "positive", match


def find_mentions(report: str) -> list[FindingMention]:
  """Returns all mentions of PHANTOM_FINDINGS in a report, in its order."""
  runs = [(run.start(), run[0] if run[0][0].isalnum() or run[0] == "." else " ")
          for run in re.finditer(r"[a-z0-9]+|\.|[^a-z0-9.]+", report.lower())]
  plain = "".join(words for _, words in runs)                          # as `read_findings` reads it
  origin = [start + i for start, words in runs for i in range(len(words))]
  found, begin = [], 0
  for sentence in plain.split("."):
    found += [FindingMention(name, state, origin[begin + match.start()], origin[begin + match.end() - 1] + 1)
              for name, state, match in _named(sentence)]
    begin += len(sentence) + 1
  return sorted(found, key=lambda mention: (mention.start, mention.end))


def _read_attributes(name: str, sentence: str, term: re.Match) -> Statement:
  """Returns the positive statement of a finding; of several sides or grades the word nearest to it counts."""
  found = {}
  for attribute in STATED[name]:
    near = [(max(term.start() - match.end(), match.start() - term.end()), value)
            for pattern, value in ATTRIBUTES[attribute].items()
            for match in re.finditer(rf"\b(?:{pattern})\b", sentence)]
    found[attribute] = min(near)[1] if near else ""
  if name == "Edema":
    found["side"] = "bilateral"              # as it is drawn; its wordings need not say so
  if name == "Lung Lesion":
    sizes = re.findall(r"\b(\d+) mm\b", sentence)
    found["size"] = int(sizes[0]) if sizes else 0
  return Statement("positive", **found)


def read_labels(report: str) -> dict[str, str]:
  """Returns a value of `LABEL_VALUES` for each of `FINDINGS`.

  "No Finding" is positive where something is stated and nothing is positive.
  """
  statements = read_findings(report)
  states = {statement.state for statement in statements.values()}
  normal = "absent"
  if "positive" in states:
    normal = "negative"
  elif "negative" in states or "no acute cardiopulmonary abnormality" in report.lower():
    normal = "positive"
  labels = {name: "absent" for name in FINDINGS} | {name: s.state for name, s in statements.items()}
  return labels | {"No Finding": normal}
