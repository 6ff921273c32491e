"""The page's data: what goes in comes out again, no text can leave its place, and restricted data stays out."""

import base64
import html.parser
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from mcsam_jax.html_report import page
from tests.testing.synthetic_studies import make_scores, make_studies, SLOTS, TRAIN

HOSTILE = '</script><script>window.hacked = 1</script><!-- <img src=x onerror="a=1"> & \u2028 \ud800 ]]> {{ 7 * 7 }}'


class Elements(html.parser.HTMLParser):
  """The elements of a page and the text in each script, as a browser would part them."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts, self._inside = [], {}, None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag == "script":
      self._inside = dict(attributes).get("id", "the script")
      self.scripts[self._inside] = ""

  def handle_endtag(self, tag):
    self._inside = None if tag == "script" else self._inside

  def handle_data(self, data):
    if self._inside:
      self.scripts[self._inside] += data


@pytest.fixture(scope="module")
def studies():
  return make_studies(8, num_pictures=3)


def write(path, studies, scores=True, **options):
  scores = make_scores(studies, PHANTOM_FINDINGS) if scores else None
  options = {"title": "A title", "findings": PHANTOM_FINDINGS, "slots": SLOTS, "train_reports": TRAIN} | options
  page.write_page(path / "page.html", scores, studies, **options)
  text = (path / "page.html").read_text()
  return text, Elements(text)


def test_what_goes_in_comes_out(tmp_path, studies):
  text, elements = write(tmp_path, studies)
  data = json.loads(elements.scripts["data"])
  bytes_of = lambda name: base64.b64decode(elements.scripts[name])
  for number, study in enumerate(studies):
    why = study["why"]
    assert (data["id"][number], data["gen"][number], data["ref"][number]) == (
        study["id"], study["generated"], study["reference"])
    assert data["scores"]["CIDEr"][number] == pytest.approx(study["scores"]["CIDEr"], abs=1e-4)
    maps = np.frombuffer(bytes_of(f"m{number}"), np.uint8).reshape(why.maps.shape)
    np.testing.assert_array_equal(maps, why.maps)
    log_probs = np.frombuffer(base64.b64decode(data["prob"][number]), "<u2") / -4000
    np.testing.assert_allclose(log_probs, np.maximum(why.log_probs, -16.38), atol=2e-4)
    assert [bytes_of(f"i{number}-{view}") for view in range(len(study["images"]))] == study["images"]
    for place, finding in enumerate(PHANTOM_FINDINGS):
      digit = int(data["labels"][number][place], 16)
      assert ("absent", "negative", "uncertain", "positive")[digit // 4] == study["reference_labels"][finding]
      assert ("absent", "negative", "uncertain", "positive")[digit % 4] == study["labels"][finding]
    marks = np.reshape(data["genMarks"][number], (-1, 4))
    assert {(study["generated"][start:end], PHANTOM_FINDINGS[finding]) for start, end, finding, _ in marks} == {
        (study["generated"][mention.start:mention.end], mention.finding) for mention in study["mentions"]}
    for slot, weight in data["slots"][number]:
      assert data["slotWords"][str(slot)] == list(SLOTS[slot]) and weight == round(1000 * dict(why.slots)[slot])
    assert [data["train"][str(record)] for record, _ in data["near"][number]] == [TRAIN[i] for i, _ in why.neighbours]
  assert "METEOR" not in data["scores"] and "0.530" in text and "0.490–0.570" in text
  assert not (tmp_path / "page_images").exists()


def test_nothing_is_asked_of_a_network(tmp_path, studies):
  _, elements = write(tmp_path, studies)
  for tag, attributes in elements.tags:
    assert tag not in ("link", "iframe", "object") and "src" not in attributes, (tag, attributes)
    assert attributes.get("href", "#").startswith("#")
  for code in (elements.scripts["the script"], page.part("page.css")):
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(|XMLHttp", code)


def test_no_text_leaves_its_place(tmp_path, studies):
  harmless = write(tmp_path, studies[:1])[1]
  study = studies[0] | {"id": HOSTILE, "generated": HOSTILE, "reference": HOSTILE, "views": [HOSTILE] * 2}
  slots = [slot._replace(began=[HOSTILE], answers=[HOSTILE]) for slot in SLOTS]
  text, elements = write(tmp_path, [study], title=HOSTILE, subtitle=HOSTILE, slots=slots, train_reports=[HOSTILE] * 40)
  assert [tag for tag, _ in elements.tags if tag != "p"] == [tag for tag, _ in harmless.tags if tag != "p"]
  assert elements.scripts.keys() == harmless.scripts.keys() and "<!--" not in elements.scripts["data"]
  data = json.loads(elements.scripts["data"])
  assert data["gen"] == data["ref"] == data["id"] == [HOSTILE.replace("\ud800", "?")]
  assert "49" not in re.search(r"<h1>(.*?)</h1>", text, re.S)[1]


def test_restricted_data_stays_out_unless_asked_for(tmp_path, studies):
  secrets = {word for study in studies for word in (study["id"], study["generated"], study["reference"])} | set(TRAIN)
  text, elements = write(tmp_path, studies, restricted=True)
  assert not [secret for secret in secrets if secret in text]
  assert not [name for name in elements.scripts if re.fullmatch(r"[im]\d+.*", name)]
  assert json.loads(elements.scripts["data"])["id"] == [] and not list(tmp_path.glob("*_images"))
  assert "0.530" in text and "Pleural Effusion" in text and "eval.html_report_restricted" in text       # scores and chart
  text, _ = write(tmp_path, studies, restricted=True, show_restricted=True)
  assert studies[0]["id"] in text and "PhysioNet" in text and "Do not share" in text


def test_images_of_many_studies_stand_beside_the_page(tmp_path, studies, monkeypatch):
  monkeypatch.setattr(page, "MAX_EMBEDDED", 7)
  _, elements = write(tmp_path, studies)
  assert json.loads(elements.scripts["data"])["imageFolder"] == "page_images"
  assert not [name for name in elements.scripts if re.match(r"i\d", name)]
  for number, study in enumerate(studies):
    for view, jpeg in enumerate(study["images"]):
      assert (tmp_path / "page_images" / f"{number}-{view}.jpg").read_bytes() == jpeg


def test_images_beside_the_page_go_when_it_no_longer_shows_them(tmp_path, studies, monkeypatch):
  folder = tmp_path / "page_images"
  for options in ({"restricted": True}, {}):
    monkeypatch.setattr(page, "MAX_EMBEDDED", 7)
    write(tmp_path, studies, restricted=True, show_restricted=True)
    assert len(list(folder.iterdir())) == sum(len(study["images"]) for study in studies)
    monkeypatch.setattr(page, "MAX_EMBEDDED", 8)
    write(tmp_path, studies, **options)
    assert not folder.exists()
  folder.mkdir()
  (folder / "0-0.jpg").write_bytes(b"a page's")
  (folder / "mine.jpg").write_bytes(b"somebody's own")
  write(tmp_path, studies)
  assert [file.name for file in folder.iterdir()] == ["mine.jpg"]


def test_ones_own_images_have_neither_scores_nor_reference(tmp_path, studies):
  bare = {key: studies[0][key] for key in ("id", "generated", "images", "views")}
  text, elements = write(tmp_path, [bare], scores=False)
  data = json.loads(elements.scripts["data"])
  assert data["ref"] == [None] and data["prob"] == [""] and data["labels"] == [""] and data["scores"] == {}
  assert "<table" not in text and "medical device" in text and "i0-0" in elements.scripts


def test_scores_are_shown_with_what_is_known_of_them(studies):
  scores = make_scores(studies, PHANTOM_FINDINGS)
  titles, rows = page.page_scores.main_table(scores)
  assert titles == ["BLEU-1", "BLEU-4", "CIDEr", "micro-F1", "macro-F1"]             # METEOR is unknown everywhere
  assert [row.name for row in rows] == ["this model", "images shuffled", "constant report"]
  assert rows[0].cells[0].low == pytest.approx(0.7) and not rows[2].cells[0].interval and not rows[2].cells[3].known
  assert rows[0].cells[0].best and not rows[1].cells[0].best
  names = [row.name for row in page.page_scores.averages(scores)]
  assert names[:3] == ["micro", "macro (present)", "uncertain negative, all findings, micro"]
  assert len(set(names)) == len(names) == 22
  scores["unseen_references"] = {"num_studies": 3, "nlg": {"CIDEr": 9.0}, "labels": None}
  titles, rows = page.page_scores.main_table(scores)
  part = rows[1].cells[titles.index("CIDEr")]
  assert rows[1].kind == "part" and part.value == 9.0 and not part.best and rows[0].cells[titles.index("CIDEr")].best
  scores["radeval"], scores["intervals"]["radeval"] = {"radgraph_simple": 0.2}, {
      "radgraph_simple": {"low": 0.1, "high": 0.3}}
  titles, rows = page.page_scores.main_table(scores)
  cells = [row.cells[-1] for row in rows]
  assert titles[-1] == "radgraph simple" and (cells[0].value, cells[0].high, cells[0].best) == (0.2, 0.3, False)
  assert not any(cell.known for cell in cells[1:])
  del scores["intervals"]
  assert not any(cell.interval for row in page.page_scores.main_table(scores)[1] for cell in row.cells)
  support = [row["support"] for row in page.page_scores.per_finding(scores)]
  assert support == sorted(support, reverse=True)


def test_overlapping_and_unknown_mentions_are_told_as_they_are(tmp_path, studies):
  mention = lambda finding, start, end: SimpleNamespace(finding=finding, label="positive", start=start, end=end)
  study = studies[0] | {"mentions": [mention("Fracture", 0, 3), mention("Edema", 4, 9), mention("Edema", 0, 9)]}
  data = json.loads(write(tmp_path, [study])[1].scripts["data"])
  edema = PHANTOM_FINDINGS.index("Edema")
  assert data["genMarks"] == [[0, 9, edema, 3, 4, 9, edema, 3]]
