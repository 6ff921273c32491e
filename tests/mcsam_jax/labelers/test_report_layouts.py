"""The rules labeler on lists, headings, keys with values, Markdown, HTML and odd line ends.

report_layouts.json holds reports in twelve formats with the labels that a reader gives them; a finding that is in none
of its three lists is absent.
"""

import csv
import json
import pathlib
import random
import textwrap
import time

import pytest

from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.labelers.rules import find_mentions, label_report
from tests.testing.foreign.mutations import mutate_bytes

FOLDER = pathlib.Path(__file__).parent
RANK = {"absent": 0, "negative": 1, "uncertain": 2, "positive": 3}
CASES = json.loads((FOLDER / "report_layouts.json").read_text())


def read_truth(case):
  truth = dict.fromkeys(FINDINGS, "absent")
  for label in ("positive", "negative", "uncertain"):
    truth |= dict.fromkeys(case[label], label)
  return truth


def read_sentences():
  """Returns the sentences of both tables that are a single statement."""
  sentences = {}
  for name in ("labeler_sentences", "labeler_sentences_held_out"):
    with (FOLDER / f"{name}.tsv").open(newline="", encoding="utf-8") as file:
      sentences |= dict.fromkeys(row["sentence"] for row in csv.DictReader(file, delimiter="\t"))
  return [sentence.rstrip(". ") for sentence in sentences if ". " not in sentence and ";" not in sentence]


def test_reports_in_twelve_formats():
  assert len(CASES) >= 60 and len({case["format"] for case in CASES}) >= 10
  assert {finding for case in CASES for finding in case["positive"]} == set(FINDINGS)
  pairs = [(case, finding, truth, label) for case in CASES
           for (finding, truth), label in zip(read_truth(case).items(), label_report(case["report"]).values())]
  mentioned = [pair for pair in pairs if pair[2:] != ("absent", "absent")]
  errors = [(case["report"], finding, truth, label) for case, finding, truth, label in mentioned if truth != label]
  assert len(mentioned) > 300 and len(errors) <= 0.03 * len(mentioned), errors
  for finding in FINDINGS:
    of_finding = [truth == label for _, name, truth, label in pairs if name == finding]
    assert sum(of_finding) >= 0.97 * len(of_finding), finding


@pytest.mark.parametrize("report", [
    "- No consolidation\n- No pneumothorax\n- Left pleural effusion\n- Enlarged heart",
    "- No consolidation.\n- No pneumothorax.\n- Left pleural effusion.\n- Enlarged heart.",
    "Consolidation: No\nPneumothorax: No\nPleural effusion: Yes\nCardiomegaly: Yes",
    "Consolidation: No\r\nPneumothorax: No\r\nPleural effusion: Yes\r\nCardiomegaly: Yes\r\n"])
def test_lists_get_the_labels_of_the_prose_that_says_the_same(report):
  prose = "There is no pneumothorax. There is a left pleural effusion. The heart is enlarged. No consolidation."
  assert label_report(report) == label_report(prose)


def test_line_ends_of_windows_change_nothing():
  for case in CASES:
    report = case["report"].replace("\r\n", "\n").replace("\r", "\n")
    assert label_report(report.replace("\n", "\r\n")) == label_report(report)
  prose = label_report("There is no pneumothorax. There is a pleural effusion on the left.")
  assert label_report("No pneumothorax\r\n\r\nPleural effusion on the left") == prose
  assert label_report("There is no pneumothorax. Pleural effusion on the left. Consolidation cannot be assessed."
                      ) == prose


@pytest.mark.parametrize("make_list", [
    lambda items: "\n".join(f"- {item}" for item in items),
    lambda items: "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1)),
    lambda items: " ".join(f"{number}) {item}" for number, item in enumerate(items, 1)),
    "<br>".join, "\r\n\r\n".join, " \u2022 ".join,
    lambda items: "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>",
    lambda items: "## Findings\n\n" + "\n".join(f"* **{item}**" for item in items),
    lambda items: "\u00a0\n".join("\u2013 " + item.replace(" ", "\u00a0") for item in items),
    lambda items: "\n".join(f"Region {number}: {item}" for number, item in enumerate(items, 1)),
], ids=["bullets", "numbers", "one line", "br", "empty lines", "inline bullets", "li", "markdown", "nbsp", "keys"])
def test_items_of_a_list_get_the_labels_of_sentences(make_list):
  sentences, rng = read_sentences(), random.Random(7)
  assert len(sentences) > 150
  for _ in range(40):
    items = rng.sample(sentences, 4)
    alone, joint = [label_report(item) for item in items], label_report(make_list(items))
    for finding in FINDINGS[1:]:
      assert joint[finding] == max((labels[finding] for labels in alone), key=RANK.__getitem__), (finding, items)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", " \n "])
def test_wrapped_prose_is_read_like_one_line(line_end):
  sentences, rng = read_sentences(), random.Random(8)
  for width in range(45, 85, 2):
    prose = ". ".join(rng.sample(sentences, 6)) + "."
    wrapped = line_end.join(textwrap.wrap(prose, width, break_on_hyphens=False))
    assert label_report(wrapped) == label_report(prose)


@pytest.mark.parametrize("report, label", [
    ("Pleural effusion: Yes", "positive"), ("Pleural effusion : present", "positive"), ("EFFUSION: 1", "positive"),
    ("Pleural effusion - yes", "positive"), ("Pleural effusion? Yes", "positive"), ("[x] Pleural effusion", "positive"),
    ("\u2713 Pleural effusion", "positive"), ("Effusion\n\nSmall, left", "positive"),
    ("Pleural effusion: No", "negative"), ("Pleural effusion: none seen", "negative"), ("effusion = 0", "negative"),
    ("Pleural effusion: no evidence.", "negative"), ("Pleural effusion: no significant", "negative"),
    ("Pleural effusion: negative", "negative"), ("effusion \u2192 absent", "negative"), ("[ ] Effusion", "negative"),
    ("\u274c Pleural effusion", "negative"), ("| Effusion | no |", "negative"), ("Effusion\uff1aNo", "negative"),
    ("Negative: effusion, edema", "negative"), ("Not seen:\n- effusion", "negative"), ("(-) effusion", "negative"),
    ("No evidence of:\n\n* edema\n* effusion", "negative"), ("Effusion:\nNo", "negative"),
    ("Effusion [No]", "negative"),
    ("Is there an effusion?\nNo.", "negative"), ("Pleural effusion: Edema without effusion", "negative"),
    ("Pleural effusion: -1", "uncertain"), ("Effusion: possible", "uncertain"), ("Effusion: unlikely", "uncertain"),
    ("Effusion: cannot be excluded", "uncertain"), ("Possible findings:\n- effusion", "uncertain"),
    ("Pleural effusion: not assessed", "absent"), ("Effusion: N/A", "absent"), ("Effusion: unknown", "absent"),
    ("Effusion cannot be assessed.", "absent"), ("Effusion can't be reliably evaluated.", "absent"),
    ("A pleural effusion could not be determined.", "absent"), ("Unable to assess effusion.", "absent"),
    ("Indication: Effusion. Edema.", "absent"), ("**Clinical history:**\neffusion", "absent"),
])
def test_keys_headings_and_boxes(report, label):
  assert label_report(report)["Pleural Effusion"] == label


@pytest.mark.parametrize("report, label", [
    ("No Finding: Yes", "positive"), ("No Finding: No", "absent"),
    ("No Finding: Yes\nSupport Devices: Yes", "positive"),
    ("No Finding: No\nSupport Devices: Yes", "absent"), ("Cardiomegaly: No\nEdema: No", "positive")])
def test_no_finding_as_a_key(report, label):
  assert label_report(report)["No Finding"] == label


def test_mentions_keep_their_offsets_under_markup():
  report = ("## Findings\r\n* **Small** pleural effusion<br>- [ ] Pneumothorax\n\u00a0\u2022 Edema:\u00a0No\n"
            "### Heart\n- Enlarged\n<b>No</b> fracture")
  mentions = [(mention.finding, mention.label, report[mention.start:mention.end]) for mention in find_mentions(report)]
  assert mentions == [
      ("Pleural Effusion", "positive", "pleural effusion"), ("Pneumothorax", "negative", "Pneumothorax"),
      ("Edema", "negative", "Edema"), ("Cardiomegaly", "positive", "Enlarged"), ("Fracture", "negative", "fracture")]


@pytest.mark.parametrize("text", [
    " " * 20_000, "-" * 20_000, "\n" * 20_000, "a: " * 8_000, "*a" * 10_000, "<b " * 8_000, "|a" * 10_000, "(" * 20_000,
    "effusion? " * 600, "no effusion or " * 600, "\"a\": " * 5_000, "#a\n" * 8_000, "\ud800" * 20_000])
def test_hostile_texts_take_little_time(text):
  started = time.process_time()
  label_report("No effusion. " + text + "Enlarged heart.")
  assert time.process_time() - started < 5


def test_damaged_reports_are_labeled():
  rng, reports = random.Random(9), [case["report"].encode() for case in CASES]
  for _ in range(150):
    damaged = mutate_bytes(b"\n".join(rng.sample(reports, 2)), rng).decode("utf-8", "surrogateescape")
    assert set(label_report(damaged).values()) <= set(LABEL_VALUES)
    assert all(0 <= mention.start < mention.end <= len(damaged) for mention in find_mentions(damaged))
