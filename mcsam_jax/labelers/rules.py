r"""What a report states of the 14 CheXpert findings: a labeler of rules, sentence by sentence.

A report comes in, raw or cleaned; out comes for each finding whether it is said
to be there (positive), to be possible (uncertain), to be absent (negative), or
nothing of it (absent). It works in four steps:

1. The report is cut into sentences. None looks at another.
2. `finding_terms` names the findings ("small effusion") and the organs whose
   state tells of one ("the heart is normal in size").
3. Cues before and after a name ("no", "cannot be excluded") turn it around. A
   cue reaches over the claim that it belongs to: over a list, but not over
   "but", "with" or "there is".
4. Over the report positive outweighs uncertain, and uncertain negative. Where
   nothing is positive or uncertain, devices aside, the report has No Finding.

Step 4 is that of CheXpert's labeler (Irvin et al., AAAI 2019; aggregate.py of
https://github.com/stanfordmlgroup/chexpert-labeler), whose steps 2 and 3 look
for phrases and for patterns in parse trees. Nor does it infer one finding from
another: a pneumonia makes no Lung Opacity, an enlarged heart no Enlarged
Cardiomediastinum. docs/labeler.md has its agreement with manual labels.
"""

from collections.abc import Sequence
import functools
import re
from typing import NamedTuple

from mcsam_jax.findings import FINDINGS
from mcsam_jax.labelers import rule_terms
from mcsam_jax.labelers.normalize_text import normalize_text

_RANK = {"absent": 0, "negative": 1, "uncertain": 2, "positive": 3}
_OTHER = "Other"                                # no finding of CheXpert, but nothing normal either


class Mention(NamedTuple):
  """A finding that is named: report[start:end]."""
  finding: str
  label: str                     # negative, uncertain or positive
  start: int
  end: int


class _Hit(NamedTuple):
  meaning: str
  start: int
  end: int


class _Scanner:
  """Finds the entries of a table of `finding_terms` in a text, from left to right."""

  def __init__(self, table: Sequence[tuple[str, Sequence[str]]]):
    self._meanings = [meaning for meaning, _ in table]
    self._find = _compile(
        r"(?:(?<!\w)|(?=[:?]))(?:" + "|".join(f"({'|'.join(words)})" for _, words in table) + r")(?!\w)").finditer

  def __call__(self, text: str) -> list[_Hit]:
    return [_Hit(self._meanings[match.lastindex - 1], *match.span()) for match in self._find(text)]


def _compile(words: str) -> re.Pattern:
  return re.compile(words.replace(" ", r"[\s\-]+").replace("~", r"[\s\-]*"))


_TERMS, _ORGANS = _Scanner(rule_terms.TERMS), _Scanner(rule_terms.ORGANS)
_STATES, _CUES = _Scanner(rule_terms.STATES), _Scanner(rule_terms.CUES)
_ASSERTED = _compile(rf"(?:[\s,]|\b(?:and|also)\b)*(?:{rule_terms.ASSERTED})\b")
_SENTENCE_END = re.compile(r"(?<!\b[Vv]s)(?<!\b[Dd]r)[.!](?=\s|$)|(?<=[a-zA-Z)])\.(?=[A-Z])|;|\n[ \t]*\n")
_OR, _AND_OR = re.compile(r"\b(?:or|nor|versus|vs|andor)\b"), re.compile(r"\b(?:and|or|andor)\b")
_OR_BEFORE, _OR_AFTER = re.compile(r"\b(?:or|andor)\s+(?:\w+\s+){0,2}$"), re.compile(r"[\s,]*(?:and/)?(?:or|andor)\b")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|may|could|no|not|without|there)\b")
_CAUSE = re.compile(r"\b(?:represent|reflect|suggest|consistent|compatible|secondary|due)")
_JOINS_STATES = re.compile(r"(?:[\s,\-]|\b(?:and|but|in|size|at|is|are|the|appearance|for|of|overall|\w+ly)\b)*")
_SAYS_SOMETHING = re.compile(r"\b(?:normal|unremarkable|negative|clear|no|without|stable|unchanged)\b")


def read_labels(report: str) -> dict[str, str]:
  """Returns a value of `LABEL_VALUES` for each of `FINDINGS`.

  No Finding is positive where no other finding than Support Devices, and none of
  `finding_terms`' others, is positive or uncertain; elsewhere it is absent. It is
  absent as well where a text says nothing at all ("", "the the . of").
  """
  labels = dict.fromkeys((*FINDINGS, _OTHER), "absent")
  for mention in _read(report):
    if _RANK[mention.label] > _RANK[labels[mention.finding]]:
      labels[mention.finding] = mention.label
  found = any(_RANK[label] > 1 for finding, label in labels.items() if finding != "Support Devices")
  if not found and (set(labels.values()) != {"absent"} or _SAYS_SOMETHING.search(normalize_text(report))):
    labels["No Finding"] = "positive"
  del labels[_OTHER]
  return labels


def find_mentions(report: str) -> list[Mention]:
  """Returns the findings that a report names, in the order of its text; No Finding is none of them.

  Start and end count characters of the report as it is given. Two mentions may
  share characters: "nodular opacity" is a Lung Lesion and a Lung Opacity.
  """
  return [mention for mention in _read(report) if mention.finding != _OTHER]


def _read(report: str) -> list[Mention]:
  text, start, found = normalize_text(report), 0, []
  for end, following in [*(match.span() for match in _SENTENCE_END.finditer(report)), (len(text), len(text))]:
    found += [Mention(finding, label, start + first, start + last)
              for finding, label, first, last in _read_sentence(text[start:end])]
    start = following
  return found


@functools.lru_cache(maxsize=1 << 14)          # radiologists repeat themselves
def _read_sentence(sentence: str) -> tuple[Mention, ...]:
  """Returns the mentions of a lower-case sentence; characters count in the sentence."""
  terms, organs = _TERMS(sentence), _ORGANS(sentence)
  if not terms and not organs:
    return ()
  cues = _CUES(sentence)
  found = []
  for term in terms:
    if term.meaning != "nothing":
      found += _mentions(term.meaning, _label(sentence, term.start, term.end, cues, terms), term.start, term.end)
  if organs:
    found += _read_organs(sentence, organs, cues, terms)
  return tuple(sorted(found, key=lambda mention: (mention.start, mention.end)))


def _mentions(meaning: str, label: str | None, start: int, end: int) -> list[Mention]:
  return [Mention(finding, label, start, end) for finding in meaning.split(", ")] if label else []


# ---- What a cue makes of a name --------------------------------------------------------------------------------------


def _label(sentence: str, start: int, end: int, cues: list[_Hit], terms: list[_Hit]) -> str | None:
  """Returns what the cues around sentence[start:end] make of it: None where they take the claim away."""
  said = _cue_ahead(sentence, start, cues, terms), _cue_behind(sentence, end, cues)
  for label in ("void", "negative", "uncertain"):
    if label in said:
      return label if label != "void" else None
  if _OR_BEFORE.search(sentence, 0, start) or _OR_AFTER.match(sentence, end):
    return "uncertain"                         # "scarring or atelectasis"
  return "positive"


def _cue_ahead(sentence: str, start: int, cues: list[_Hit], terms: list[_Hit]) -> str | None:
  """Returns the label of the nearest cue that stands ahead of `start` and reaches it."""
  uncertain = None                             # a cue that is uncertain
  for cue in reversed(cues):
    if cue.end > start or cue.meaning == "neutral":
      continue
    if cue.meaning == "stop":
      break
    label, side = cue.meaning.split()
    if side == "before" or not _reaches(sentence, cue, start, cues, terms):
      continue
    if uncertain is None and label != "uncertain":
      return label
    if uncertain is None:
      uncertain = cue
    elif label == "negative" and "," not in sentence[cue.end:uncertain.start]:
      return label                             # "no opacity concerning for pneumonia"
  return "uncertain" if uncertain else None


def _reaches(sentence: str, cue: _Hit, start: int, cues: list[_Hit], terms: list[_Hit]) -> bool:
  """Says whether a cue reaches over what stands between it and `start`."""
  if sentence.startswith(("differential", "consider"), cue.start):
    return True                                # over a list of any length
  clause_end = next((other.start for other in cues if other.start >= start and other.meaning == "stop"), len(sentence))
  if cue.meaning.startswith("uncertain") and "," in sentence[cue.end:start]:
    return bool(_OR.search(sentence, cue.end, clause_end))
  for term in terms:                           # "no pneumothorax, small effusion"
    if cue.end <= term.start and term.end <= start:
      asserted = _ASSERTED.match(sentence, term.end)
      if asserted and not _OR.search(sentence, asserted.end(), clause_end):
        return False
  return True


def _cue_behind(sentence: str, end: int, cues: list[_Hit]) -> str | None:
  """Returns the label of the nearest cue that stands behind `end` and reaches back to it."""
  for cue in cues:
    if cue.start < end or cue.meaning == "neutral":
      continue
    if cue.meaning == "stop":
      return None
    label, side = cue.meaning.split()
    if side == "after":
      continue
    between = sentence[end:cue.start]
    if _VERB.search(between) or _CAUSE.search(between) or ("," in between and not _AND_OR.search(between)):
      return None                              # another claim stands between
    return label
  return None


# ---- What an organ's state says --------------------------------------------------------------------------------------


def _read_organs(sentence: str, organs: list[_Hit], cues: list[_Hit], terms: list[_Hit]) -> list[Mention]:
  """Returns the findings that the states of organs tell: "the heart is mildly enlarged"."""
  states = _STATES(sentence)
  found = []
  for organ in organs:
    if organ.meaning == "nothing" or any(term.start < organ.end and organ.start < term.end for term in terms):
      continue
    state = _state_of(sentence, organ, states, cues, terms)
    if state is None or (state.meaning != "negative" and organ.meaning in rule_terms.NEVER_ENLARGED):
      continue
    label, start, end = state.meaning, min(organ.start, state.start), max(organ.end, state.end)
    if label != "negative":
      said = _label(sentence, state.start, end, cues, terms)
      label = label if said == "positive" else said
    found += _mentions(organ.meaning, label, start, end)
  return found


def _state_of(sentence: str, organ: _Hit, states: list[_Hit], cues: list[_Hit], terms: list[_Hit]) -> _Hit | None:
  """Returns the state that is said of an organ: the one right before it, else the first after it, else the last before.

  None where nothing is said that judges it: "stable", "obscured".
  """
  def another_claim(start, end):
    return any(cue.meaning == "stop" and start <= cue.start < end for cue in cues) or any(
        term.meaning != _OTHER and start <= term.start < end for term in terms)

  before = next((state for state in reversed(states) if state.end <= organ.start), None)
  if before and before.meaning == "unsaid":
    before = None
  if before and not sentence[before.end:organ.start].strip(" -"):
    return before                              # "normal heart size"
  unsaid = None
  for state in states:
    if state.start < organ.end:
      continue
    if another_claim(organ.end, state.start):
      break
    if unsaid and not _JOINS_STATES.fullmatch(sentence, unsaid.end, state.start):
      return None                              # "the heart is stable, the mediastinum normal"
    if state.meaning != "unsaid":
      return state
    unsaid = state
  if before and not unsaid and not another_claim(before.end, organ.start) and not _VERB.search(
      sentence, before.end, organ.start):
    return before                              # "normal size of the heart"
  return None
