r"""A rule-based labeler of the 14 CheXpert findings, which reads a report statement by statement.

A report, raw or cleaned, gets for each finding one label: positive (present), uncertain (possible), negative (stated
to be absent) or absent (not mentioned). There are four steps:

1. The report is split into statements (`statements`), which are read independently: sentences, items of lists, and
   pairs such as "Effusion: no" (`key_values`).
2. `rule_terms` finds the names of findings ("small effusion") and organs whose state determines a finding ("the heart
   is normal in size").
3. Cues before and after a name ("no", "cannot be excluded") change its label. A cue's scope is its own claim: it
   extends over a list, but not past "but", "with" or "there is".
4. Over the whole report, positive outranks uncertain, and uncertain outranks negative. If nothing but devices is
   positive or uncertain, the report has No Finding.

Step 4 is that of CheXpert's labeler (Irvin et al., AAAI 2019; aggregate.py of
https://github.com/stanfordmlgroup/chexpert-labeler), whose steps 2 and 3 search for phrases and for patterns in parse
trees. As there, no finding is inferred from another: a pneumonia is not a Lung Opacity, an enlarged heart not an
Enlarged Cardiomediastinum. docs/labeler.md reports the agreement with manual labels.
"""

from collections.abc import Sequence
import functools
import re

from mcsam_jax.findings import FindingMention, FINDINGS
from mcsam_jax.labelers import rule_terms
from mcsam_jax.labelers.key_values import find_heading_label, get_finding, join_heading, Pair, split_pair
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.normalize_text import normalize_text
from mcsam_jax.labelers.statements import split_statements
from mcsam_jax.labelers.term_scanner import compile_terms, find_cues, find_organs, find_states, find_terms, Match

_RANK = {"absent": 0, "negative": 1, "uncertain": 2, "positive": 3}
_OTHER = "Other"                                # an abnormality that is not a finding of CheXpert
_ASSERTED = compile_terms(rf"(?:[\s,]|\b(?:and|also)\b)*(?:{rule_terms.ASSERTED})\b")
_OR, _AND_OR = re.compile(r"\b(?:or|nor|versus|vs|andor)\b"), re.compile(r"\b(?:and|or|andor)\b")
_OR_BEFORE, _OR_AFTER = re.compile(r"\b(?:or|andor)\s+(?:\w+\s+){0,2}$"), re.compile(r"[\s,]*(?:and/)?(?:or|andor)\b")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|may|could|no|not|without|there)\b")
_CAUSE = re.compile(r"\b(?:represent|reflect|suggest|consistent|compatible|secondary|due)")
_JOINS_STATES = re.compile(r"(?:[\s,\-]|\b(?:and|but|in|size|at|is|are|the|appearance|for|of|overall|\w+ly)\b)*")
_STATES_SOMETHING = re.compile(r"\b(?:normal|unremarkable|negative|clear|no|without|stable|unchanged)\b")


def make_rules_labeler() -> Labeler:
  """Returns the labeler `rules`."""
  return Labeler.from_function("rules", FINDINGS, label_report)


def label_report(report: str) -> dict[str, str]:
  """Returns one of `LABEL_VALUES` for each of `FINDINGS`.

  No Finding is positive if no finding other than Support Devices is positive or uncertain, the "Other" abnormalities of
  `rule_terms` included; otherwise it is absent. It is also absent if a text states nothing at all ("", "the the . of").
  """
  labels: dict[str, str] = dict.fromkeys((*FINDINGS, _OTHER), "absent")
  for mention in _find_all_mentions(report):
    if _RANK[mention.label] > _RANK[labels[mention.finding]]:
      labels[mention.finding] = mention.label
  abnormal = any(_RANK[label] > _RANK["negative"] for finding, label in labels.items() if finding != "Support Devices")
  if not abnormal and (set(labels.values()) != {"absent"} or _STATES_SOMETHING.search(normalize_text(report))):
    labels["No Finding"] = "positive"
  del labels[_OTHER]
  return labels


def find_mentions(report: str) -> list[FindingMention]:
  """Returns the mentions of findings in the order of the text; No Finding is never mentioned.

  `start` and `end` are character offsets in the original report. Two mentions may overlap: "nodular opacity" is a Lung
  Lesion and a Lung Opacity.
  """
  return [mention for mention in _find_all_mentions(report) if mention.finding != _OTHER]


def _find_all_mentions(report: str) -> list[FindingMention]:
  """Returns the mentions of findings and of "Other" abnormalities."""
  return [mention._replace(start=statement.start + mention.start, end=statement.start + mention.end)
          for statement in split_statements(report)
          for mention in _read_statement(statement.text, statement.heading, statement.label)]


# ---- Statements ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 14)          # many statements recur in many reports
def _read_statement(text: str, heading: str, box_label: str) -> tuple[FindingMention, ...]:
  """Returns the mentions in a statement, with offsets in it.

  Args:
    text: in lower case.
    heading: the heading above it. It says what an item without a finding or an organ is about ("Heart", "enlarged"), or
      gives its label to the findings below it ("No evidence of").
    box_label: the label of a check box before the statement; "" if there is none.
  """
  label = box_label or find_heading_label(heading)
  if label == "ignore":
    return ()
  pair = split_pair(text)
  mentions = list(_read_pair(text, pair) if pair else _read_sentence(text))
  if heading and not mentions and not find_terms(text) and not find_organs(text):
    joined, start, end = join_heading(heading, text), len(text) - len(text.lstrip()), len(text.rstrip())
    joined_pair = split_pair(joined)
    mentions = [mention._replace(start=start, end=end)
                for mention in (_read_pair(joined, joined_pair) if joined_pair else ())]
  if label:
    mentions = [mention._replace(label=label) if mention.label == "positive" else mention for mention in mentions]
  return tuple(mentions)


def _read_pair(text: str, pair: Pair) -> Sequence[FindingMention]:
  """Returns the mentions in a statement such as "pneumothorax: no" or "heart: enlarged"."""
  key, value = pair.key, text[pair.value_start:]
  shift = lambda mentions, offset: [mention._replace(start=mention.start + offset, end=mention.end + offset)
                                    for mention in mentions]
  in_value = shift(_read_sentence(value), pair.value_start)
  name, end = get_finding(key), pair.key_start + len(key)
  if name == "No Finding":
    return [FindingMention(_OTHER, "positive", pair.key_start, end)] if pair.label == "negative" else in_value
  in_key = ([FindingMention(name, "positive", pair.key_start, end)] if name
            else shift(_read_sentence(key), pair.key_start))
  if not in_key:
    heading_label = find_heading_label(key)
    if heading_label == "ignore":
      return ()
    whole = _read_sentence(text)
    return ([mention._replace(label=heading_label) if mention.label == "positive" else mention for mention in in_value]
            if heading_label else whole)
  if pair.label is not None:
    return [*_answer(in_key, pair.label), *in_value]
  findings_in_value = {mention.finding for mention in in_value}
  if findings_in_value & {mention.finding for mention in in_key}:
    return in_value                            # "pneumothorax: there is no pneumothorax"
  labels = {mention.label for mention in in_value}
  if not in_value and name is None:
    return _read_sentence(text)                # "effusion: small"
  if not in_value:
    cues = [cue.meaning.split()[0] for cue in find_cues(value) if cue.meaning not in ("neutral", "stop")]
    labels = set(cues[:1])
  label = labels.pop() if len(labels) == 1 else "positive"
  return [*_answer(in_key, label), *in_value]   # "pneumonia: no consolidation"


def _answer(in_key: Sequence[FindingMention], label: str) -> list[FindingMention]:
  """Returns the mentions in a key, "effusion", with the label of its value: "no", "possible", "yes", "not assessed"."""
  if label == "ignore":
    return []
  if label == "positive":
    return list(in_key)
  if label == "negative":                      # "lungs clear: no" doesn't say what is there
    return [mention._replace(label=label) for mention in in_key if mention.label != "negative"]
  return [mention._replace(label=label) if mention.label == "positive" else mention for mention in in_key]


def _read_sentence(sentence: str) -> tuple[FindingMention, ...]:
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
        term.meaning != _OTHER and start <= term.start < end for term in terms)

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
