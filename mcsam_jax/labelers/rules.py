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
from mcsam_jax.labelers.key_values import find_heading_label, get_finding, join_heading, Pair, split_pair
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.normalize_text import normalize_text
from mcsam_jax.labelers.sentences import OTHER, read_sentence
from mcsam_jax.labelers.statements import split_statements
from mcsam_jax.labelers.term_scanner import find_cues, find_organs, find_terms

_RANK = {"absent": 0, "negative": 1, "uncertain": 2, "positive": 3}
_STATES_SOMETHING = re.compile(r"\b(?:normal|unremarkable|negative|clear|no|without|stable|unchanged)\b")


def make_rules_labeler() -> Labeler:
  """Returns the labeler `rules`."""
  return Labeler.from_function("rules", FINDINGS, label_report)


def label_report(report: str) -> dict[str, str]:
  """Returns one of `LABEL_VALUES` for each of `FINDINGS`.

  No Finding is positive if no finding other than Support Devices is positive or uncertain, the "Other" abnormalities of
  `rule_terms` included; otherwise it is absent. It is also absent if a text states nothing at all ("", "the the . of").
  """
  labels: dict[str, str] = dict.fromkeys((*FINDINGS, OTHER), "absent")
  for mention in _find_all_mentions(report):
    if _RANK[mention.label] > _RANK[labels[mention.finding]]:
      labels[mention.finding] = mention.label
  abnormal = any(_RANK[label] > _RANK["negative"] for finding, label in labels.items() if finding != "Support Devices")
  if not abnormal and (set(labels.values()) != {"absent"} or _STATES_SOMETHING.search(normalize_text(report))):
    labels["No Finding"] = "positive"
  del labels[OTHER]
  return labels


def find_mentions(report: str) -> list[FindingMention]:
  """Returns the mentions of findings in the order of the text; No Finding is never mentioned.

  `start` and `end` are character offsets in the original report. Two mentions may overlap: "nodular opacity" is a Lung
  Lesion and a Lung Opacity.
  """
  return [mention for mention in _find_all_mentions(report) if mention.finding != OTHER]


def _find_all_mentions(report: str) -> list[FindingMention]:
  """Returns the mentions of findings and of "Other" abnormalities."""
  mentions, heading, in_heading = [], "", []
  for statement in split_statements(report):
    found = [mention._replace(start=statement.start + mention.start, end=statement.start + mention.end)
             for mention in _read_statement(statement.text, statement.heading, statement.label)]
    if statement.is_heading:                   # "**Effusion**" names what follows, unless that is about other findings
      mentions += in_heading
      heading, in_heading = statement.text.strip(" \t:"), found
    else:
      if statement.heading == heading and (
          not found or {mention.finding for mention in found} & {mention.finding for mention in in_heading}):
        in_heading = []
      mentions += found
  return sorted([*mentions, *in_heading], key=lambda mention: (mention.start, mention.end))


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
  mentions = list(_read_pair(text, pair) if pair else read_sentence(text))
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
  in_value = shift(read_sentence(value), pair.value_start)
  name, end = get_finding(key), pair.key_start + len(key)
  if name == "No Finding":
    return [FindingMention(OTHER, "positive", pair.key_start, end)] if pair.label == "negative" else in_value
  in_key = ([FindingMention(name, "positive", pair.key_start, end)] if name
            else shift(read_sentence(key), pair.key_start))
  if not in_key:
    heading_label = find_heading_label(key)
    if heading_label == "ignore":
      return ()
    whole = read_sentence(text)
    return ([mention._replace(label=heading_label) if mention.label == "positive" else mention for mention in in_value]
            if heading_label else whole)
  if pair.label is not None:
    return [*_answer(in_key, pair.label), *in_value]
  findings_in_value = {mention.finding for mention in in_value}
  if findings_in_value & {mention.finding for mention in in_key}:
    return in_value                            # "pneumothorax: there is no pneumothorax"
  labels = {mention.label for mention in in_value}
  if not in_value and name is None:
    return read_sentence(text)                # "effusion: small"
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
