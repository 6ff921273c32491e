"""Reads the findings of one sentence: names of findings, organs and their states, and the cues around them."""

import re

from mcsam_jax.findings import FindingMention
from mcsam_jax.labelers import rule_terms
from mcsam_jax.labelers.term_scanner import compile_terms, find_cues, find_organs, find_states, find_terms, Match

OTHER = "Other"                                 # an abnormality that is not a finding of CheXpert
_ASSERTED = compile_terms(rf"(?:[\s,]|\b(?:and|also)\b)*(?:{rule_terms.ASSERTED})\b")
_OR, _AND_OR = re.compile(r"\b(?:or|nor|versus|vs|andor)\b"), re.compile(r"\b(?:and|or|andor)\b")
_OR_BEFORE, _OR_AFTER = re.compile(r"\b(?:or|andor)\s+(?:\w+\s+){0,2}$"), re.compile(r"[\s,]*(?:and/)?(?:or|andor)\b")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|may|could|no|not|without|there)\b")
_CAUSE = re.compile(r"\b(?:represent|reflect|suggest|consistent|compatible|secondary|due)")
_JOINS_STATES = re.compile(r"(?:[\s,\-]|\b(?:and|but|in|size|at|is|are|the|appearance|for|of|overall|\w+ly)\b)*")


def read_sentence(sentence: str) -> tuple[FindingMention, ...]:
  """Returns the mentions in a lower-case sentence, with offsets in the sentence."""
  terms, organs = find_terms(sentence), find_organs(sentence)
  if not terms and not organs:
    return ()
  cues = find_cues(sentence)
  mentions = []
  for term in terms:
    if term.meaning != "ignore":
      label = _apply_cues(sentence, term.start, term.end, cues, terms)
      mentions += _make_mentions(term.meaning, label, term.start, term.end)
  if organs:
    mentions += _read_organs(sentence, organs, cues, terms)
  return tuple(sorted(mentions, key=lambda mention: (mention.start, mention.end)))


def _make_mentions(findings: str, label: str | None, start: int, end: int) -> list[FindingMention]:
  """Returns a mention for each of the comma-separated findings; none if the label is None."""
  return [FindingMention(finding, label, start, end) for finding in findings.split(", ")] if label else []


# ---- Cues ------------------------------------------------------------------------------------------------------------


def _apply_cues(sentence: str, start: int, end: int, cues: list[Match], terms: list[Match]) -> str | None:
  """Returns the label that the surrounding cues give to sentence[start:end]; None if they withdraw the mention."""
  cue_labels = _find_label_before(sentence, start, cues, terms), _find_label_after(sentence, end, cues)
  if "ignore" in cue_labels:
    return None
  for label in ("negative", "uncertain"):
    if label in cue_labels:
      return label
  if _OR_BEFORE.search(sentence, 0, start) or _OR_AFTER.match(sentence, end):
    return "uncertain"                         # "scarring or atelectasis"
  return "positive"


def _find_label_before(sentence: str, start: int, cues: list[Match], terms: list[Match]) -> str | None:
  """Returns the label of the nearest cue before `start` that has it in its scope."""
  uncertain_cue = None
  for cue in reversed(cues):
    if cue.end > start or cue.meaning == "neutral":
      continue
    if cue.meaning == "stop":
      break
    label, direction = cue.meaning.split()
    if direction == "before" or not _is_in_scope(sentence, cue, start, cues, terms):
      continue
    if uncertain_cue is None and label != "uncertain":
      return label
    if uncertain_cue is None:
      uncertain_cue = cue
    elif label == "negative" and "," not in sentence[cue.end:uncertain_cue.start]:
      return label                             # "no opacity concerning for pneumonia"
  return "uncertain" if uncertain_cue else None


def _is_in_scope(sentence: str, cue: Match, start: int, cues: list[Match], terms: list[Match]) -> bool:
  """Returns whether the scope of a cue extends to a term that begins at `start`, after the cue."""
  if sentence.startswith(("differential", "consider"), cue.start):
    return True                                # these extend over a list of any length
  clause_end = next((other.start for other in cues if other.start >= start and other.meaning == "stop"), len(sentence))
  if cue.meaning.startswith("uncertain") and "," in sentence[cue.end:start]:
    return bool(_OR.search(sentence, cue.end, clause_end))
  for term in terms:                           # "no pneumothorax, small effusion"
    if cue.end <= term.start and term.end <= start:
      asserted = _ASSERTED.match(sentence, term.end)
      if asserted and not _OR.search(sentence, asserted.end(), clause_end):
        return False
  return True


def _find_label_after(sentence: str, end: int, cues: list[Match]) -> str | None:
  """Returns the label of the nearest cue after `end` that has it in its scope."""
  for cue in cues:
    if cue.start < end or cue.meaning == "neutral":
      continue
    if cue.meaning == "stop":
      return None
    label, direction = cue.meaning.split()
    if direction == "after":
      continue
    between = sentence[end:cue.start]
    if _VERB.search(between) or _CAUSE.search(between) or ("," in between and not _AND_OR.search(between)):
      return None                              # another claim lies in between
    return label
  return None


# ---- Organs ----------------------------------------------------------------------------------------------------------


def _read_organs(sentence: str, organs: list[Match], cues: list[Match], terms: list[Match]
                 ) -> list[FindingMention]:
  """Returns the findings that the states of organs determine, as in "the heart is mildly enlarged"."""
  states = find_states(sentence)
  mentions = []
  for organ in organs:
    if organ.meaning == "ignore" or any(term.start < organ.end and organ.start < term.end for term in terms):
      continue
    state = _find_state(sentence, organ, states, cues, terms)
    if state is None or (state.meaning != "negative" and organ.meaning in rule_terms.NEVER_ENLARGED):
      continue
    label, start, end = state.meaning, min(organ.start, state.start), max(organ.end, state.end)
    if label != "negative":
      cue_label = _apply_cues(sentence, state.start, end, cues, terms)
      label = label if cue_label == "positive" else cue_label
    mentions += _make_mentions(organ.meaning, label, start, end)
  return mentions


def _find_state(sentence: str, organ: Match, states: list[Match], cues: list[Match], terms: list[Match]
                ) -> Match | None:
  """Returns the state of an organ: directly before it, else the first one after it, else the last one before it.

  None if no state judges the organ: "stable", "obscured".
  """
  def is_another_claim(start: int, end: int) -> bool:
    return any(cue.meaning == "stop" and start <= cue.start < end for cue in cues) or any(
        term.meaning != OTHER and start <= term.start < end for term in terms)

  before = next((state for state in reversed(states) if state.end <= organ.start), None)
  if before and before.meaning == "unclear":
    before = None
  if before and not sentence[before.end:organ.start].strip(" -"):
    return before                              # "normal heart size"
  unclear = None
  for state in states:
    if state.start < organ.end:
      continue
    if is_another_claim(organ.end, state.start):
      break
    if unclear and not _JOINS_STATES.fullmatch(sentence, unclear.end, state.start):
      return None                              # "the heart is stable, the mediastinum normal"
    if state.meaning != "unclear":
      return state
    unclear = state
  if before and not unclear and not is_another_claim(before.end, organ.start) and not _VERB.search(
      sentence, before.end, organ.start):
    return before                              # "normal size of the heart"
  return None
