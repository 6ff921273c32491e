"""The HTML report holds its studies unchanged, text cannot become markup, and restricted studies are left out."""

import base64
import html.parser
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from mcsam_jax.html_report import page
from mcsam_jax.html_report import scores as page_scores
from mcsam_jax.html_report.data import LOG_PROB_SCALE
from mcsam_jax.html_report.forest import make_forest
from tests.testing.synthetic_studies import make_scores, make_studies, SLOTS, TRAIN

HOSTILE = '</script><script>window.hacked = 1</script><!-- <img src=x onerror="a=1"> & \u2028 \ud800 ]]> {{ 7 * 7 }}'


class ParsedPage(html.parser.HTMLParser):
  """The tags of a page and the text of each script element, by id, parsed as in a browser."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts, self._script = [], {}, None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag == "script":
      self._script = dict(attributes).get("id", "code")
      self.scripts[self._script] = ""

  def handle_endtag(self, tag):
    self._script = None if tag == "script" else self._script

  def handle_data(self, data):
    if self._script:
      self.scripts[self._script] += data


@pytest.fixture(scope="module")
def studies():
  return make_studies(8, num_pictures=3)


def write(path, studies, with_scores=True, **options):
  scores = make_scores(studies, PHANTOM_FINDINGS) if with_scores else None
  options = {"title": "A title", "findings": PHANTOM_FINDINGS, "slots": SLOTS, "train_reports": TRAIN} | options
  page.write_page(path / "page.html", scores, studies, **options)
  text = (path / "page.html").read_text()
  return text, ParsedPage(text)


def test_page_holds_the_data_of_all_studies(tmp_path, studies):
  text, elements = write(tmp_path, studies)
  data = json.loads(elements.scripts["data"])
  decode_blob = lambda name: base64.b64decode(elements.scripts[name])
  for number, study in enumerate(studies):
    explanation = study["explanation"]
    assert (data["id"][number], data["generated"][number], data["reference"][number]) == (
        study["id"], study["generated"], study["reference"])
    assert data["scores"]["CIDEr"][number] == pytest.approx(study["scores"]["CIDEr"], abs=1e-4)
    maps = np.frombuffer(decode_blob(f"maps-{number}"), np.uint8).reshape(explanation.maps.shape)
    np.testing.assert_array_equal(maps, explanation.maps)
    log_probs = np.frombuffer(base64.b64decode(data["logProbs"][number]), "<u2") / -LOG_PROB_SCALE
    np.testing.assert_allclose(log_probs, np.maximum(explanation.log_probs, -16.38), atol=2e-4)
    assert [decode_blob(f"image-{number}-{view}") for view in range(len(study["images"]))] == study["images"]
    for index, finding in enumerate(PHANTOM_FINDINGS):
      digit = int(data["labels"][number][index], 16)
      assert ("absent", "negative", "uncertain", "positive")[digit // 4] == study["reference_labels"][finding]
      assert ("absent", "negative", "uncertain", "positive")[digit % 4] == study["labels"][finding]
    marks = np.reshape(data["generatedMentions"][number], (-1, 4))
    assert {(study["generated"][start:end], PHANTOM_FINDINGS[finding]) for start, end, finding, _ in marks} == {
        (study["generated"][mention.start:mention.end], mention.finding) for mention in study["mentions"]}
    for slot, weight in data["slots"][number]:
      assert data["slotDescriptions"][str(slot)] == list(SLOTS[slot])
      assert weight == round(1000 * dict(explanation.slots)[slot])
    neighbors = [data["trainReports"][str(record)] for record, _ in data["neighbors"][number]]
    assert neighbors == [TRAIN[record] for record, _ in explanation.neighbors]
  assert "METEOR" not in data["scores"] and "0.530" in text and "0.490–0.570" in text
  assert not (tmp_path / "page_images").exists()


def test_page_loads_nothing_from_a_network(tmp_path, studies):
  _, elements = write(tmp_path, studies)
  for tag, attributes in elements.tags:
    assert tag not in ("link", "iframe", "object") and "src" not in attributes, (tag, attributes)
    assert attributes.get("href", "#").startswith("#")
  for code in (elements.scripts["code"], page.read_asset("page.css")):
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(|XMLHttp", code)


def test_text_cannot_become_markup(tmp_path, studies):
  harmless = write(tmp_path, studies[:1])[1]
  study = studies[0] | {"id": HOSTILE, "generated": HOSTILE, "reference": HOSTILE, "views": [HOSTILE] * 2}
  slots = [slot._replace(topic_words=[HOSTILE], top_words=[HOSTILE]) for slot in SLOTS]
  text, elements = write(tmp_path, [study], title=HOSTILE, subtitle=HOSTILE, slots=slots, train_reports=[HOSTILE] * 40)
  assert [tag for tag, _ in elements.tags if tag != "p"] == [tag for tag, _ in harmless.tags if tag != "p"]
  assert elements.scripts.keys() == harmless.scripts.keys() and "<!--" not in elements.scripts["data"]
  data = json.loads(elements.scripts["data"])
  assert data["generated"] == data["reference"] == data["id"] == [HOSTILE.replace("\ud800", "?")]
  headings = re.findall(r"<h1>(.*?)</h1>", text, re.S)
  assert len(headings) == 1 and "49" not in headings[0]                             # {{ 7 * 7 }} is not evaluated


def test_restricted_studies_are_left_out_by_default(tmp_path, studies):
  secrets = {word for study in studies for word in (study["id"], study["generated"], study["reference"])} | set(TRAIN)
  text, elements = write(tmp_path, studies, restricted=True)
  assert not [secret for secret in secrets if secret in text]
  assert not [name for name in elements.scripts if re.fullmatch(r"(image|maps)-\d+.*", name)]
  assert json.loads(elements.scripts["data"])["id"] == [] and not list(tmp_path.glob("*_images"))
  assert "0.530" in text and "Pleural Effusion" in text and "eval.html_report_restricted" in text
  text, _ = write(tmp_path, studies, restricted=True, show_restricted=True)
  assert studies[0]["id"] in text and "PhysioNet" in text and "Do not share" in text


def test_images_of_many_studies_are_files_next_to_the_page(tmp_path, studies, monkeypatch):
  monkeypatch.setattr(page, "MAX_EMBEDDED_STUDIES", 7)
  _, elements = write(tmp_path, studies)
  assert json.loads(elements.scripts["data"])["imageFolder"] == "page_images"
  assert not [name for name in elements.scripts if re.match(r"image-\d", name)]
  for number, study in enumerate(studies):
    for view, jpeg in enumerate(study["images"]):
      assert (tmp_path / "page_images" / f"{number}-{view}.jpg").read_bytes() == jpeg


def test_stale_image_files_are_deleted(tmp_path, studies, monkeypatch):
  folder = tmp_path / "page_images"
  for options in ({"restricted": True}, {}):
    monkeypatch.setattr(page, "MAX_EMBEDDED_STUDIES", 7)
    write(tmp_path, studies, restricted=True, show_restricted=True)
    assert len(list(folder.glob("*.jpg"))) == sum(len(study["images"]) for study in studies)
    monkeypatch.setattr(page, "MAX_EMBEDDED_STUDIES", 8)
    write(tmp_path, studies, **options)
    assert not folder.exists()


def test_files_of_the_user_are_never_deleted_or_replaced(tmp_path, studies, monkeypatch):
  monkeypatch.setattr(page, "MAX_EMBEDDED_STUDIES", 7)
  own = tmp_path / "page_images"                                             # the user's X-rays, named like the page's
  own.mkdir()
  kept = {own / "0-0.jpg": b"an X-ray", own / "1-1.jpg": b"another X-ray"}
  target = tmp_path / "elsewhere"
  target.mkdir()
  kept |= {target / "0-0.jpg": b"behind a link"}
  for path, content in kept.items():
    path.write_bytes(content)
  (tmp_path / "page_images-2").symlink_to(target)
  for folder in ("page_images-3", "page_images-3"):                          # and once more over its own images
    _, elements = write(tmp_path, studies)
    assert json.loads(elements.scripts["data"])["imageFolder"] == folder
  written = tmp_path / "page_images-3"
  changed = {written / "0-0.jpg": b"replaced by the user", written / "notes.txt": b"added by the user"}
  for path, content in changed.items():
    path.write_bytes(content)
  monkeypatch.setattr(page, "MAX_EMBEDDED_STUDIES", 100)
  write(tmp_path, studies)
  assert {path.name for path in written.iterdir()} == {"0-0.jpg", "notes.txt", "written_by_mcsam.txt"}
  for path, content in (kept | changed).items():
    assert path.read_bytes() == content
  assert (tmp_path / "page_images-2").is_symlink()


def test_images_under_another_folder_name_are_deleted_when_the_first_name_is_free_again(tmp_path, studies, monkeypatch):
  monkeypatch.setattr(page, "MAX_EMBEDDED_STUDIES", 7)
  (tmp_path / "page_images").mkdir()                                          # the user's; removed later
  write(tmp_path, studies)
  assert (tmp_path / "page_images-2").exists()
  (tmp_path / "page_images").rmdir()
  write(tmp_path, studies)
  assert [folder.name for folder in tmp_path.glob("*_images*")] == ["page_images"]


def test_user_images_have_neither_scores_nor_reference(tmp_path, studies):
  bare = {key: studies[0][key] for key in ("id", "generated", "images", "views")}
  text, elements = write(tmp_path, [bare], with_scores=False)
  data = json.loads(elements.scripts["data"])
  assert data["reference"] == [None] and data["logProbs"] == [""] and data["labels"] == [""] and data["scores"] == {}
  assert "<table" not in text and "medical device" in text and "image-0-0" in elements.scripts


def test_score_tables_show_known_scores_and_intervals(studies):
  scores = make_scores(studies, PHANTOM_FINDINGS)
  titles, rows = page_scores.make_main_table(scores)
  assert titles == ["CIDEr", "micro-F1", "macro-F1", "BLEU-1", "BLEU-4"]             # METEOR is unknown everywhere
  assert [row.name for row in rows] == ["this model", "shuffled images", "constant report"]
  assert rows[0].cells[3].low == pytest.approx(0.7) and not rows[2].cells[3].has_interval and not rows[2].cells[1].known
  assert rows[0].cells[0].best and not rows[1].cells[0].best
  names = [row.name for row in page_scores.make_label_averages(scores)]
  assert names[:3] == ["micro", "macro (present)", "uncertain negative, all findings, micro"]
  assert len(set(names)) == len(names) == 22
  scores["unseen_references"] = {"num_studies": 3, "nlg": {"CIDEr": 9.0}, "labels": None}
  titles, rows = page_scores.make_main_table(scores)
  subset = rows[1].cells[titles.index("CIDEr")]
  assert rows[1].kind == "subset" and subset.value == 9.0 and not subset.best
  assert rows[0].cells[titles.index("CIDEr")].best
  scores["radeval"], scores["intervals"]["radeval"] = {"radgraph_simple": 0.2}, {
      "radgraph_simple": {"low": 0.1, "high": 0.3}}
  titles, rows = page_scores.make_main_table(scores)
  cells = [row.cells[-1] for row in rows]
  assert titles[-1] == "radgraph simple" and (cells[0].value, cells[0].high, cells[0].best) == (0.2, 0.3, False)
  assert not any(cell.known for cell in cells[1:])
  del scores["intervals"]
  assert not any(cell.has_interval for row in page_scores.make_main_table(scores)[1] for cell in row.cells)
  support = [row["support"] for row in page_scores.make_finding_rows(scores)]
  assert support == sorted(support, reverse=True)


def test_overlapping_mentions_are_kept_and_unknown_findings_left_out(tmp_path, studies):
  mention = lambda finding, start, end: SimpleNamespace(finding=finding, label="positive", start=start, end=end)
  study = studies[0] | {"mentions": [mention("Fracture", 0, 3), mention("Edema", 4, 9), mention("Edema", 0, 9)]}
  data = json.loads(write(tmp_path, [study])[1].scripts["data"])
  edema = PHANTOM_FINDINGS.index("Edema")
  assert data["generatedMentions"] == [[0, 9, edema, 3, 4, 9, edema, 3]]


def squeeze(html):
  """Returns HTML without the white space between elements."""
  return re.sub(r">\s+<", "><", html)


def test_page_shows_what_the_model_knows_beside_what_it_says(tmp_path, studies):
  summary, scores = "<summary>What the model knows, and what it says</summary>", make_scores(studies, PHANTOM_FINDINGS)
  assert summary not in write(tmp_path, studies)[0]
  scores["known_findings"] = {
      "Edema": {"support": 5, "f1": 0.25, "samples": {"auc": 0.8192, "calibration_error": 0.031}},
      "Fracture": {"support": 0, "f1": 0.0, "samples": {"auc": None, "calibration_error": 0.1}}}
  page.write_page(tmp_path / "known.html", scores, studies, title="A title", findings=PHANTOM_FINDINGS, slots=SLOTS,
                  train_reports=TRAIN)
  text = squeeze((tmp_path / "known.html").read_text())
  assert summary in text and "area under the ROC curve" in text
  assert '<tr><th scope="row">Edema</th><td>5</td><td>0.819<small>0.031</small></td><td>0.250</td></tr>' in text
  assert '<tr><th scope="row">Fracture</th><td>0</td><td>–<small>0.100</small></td><td>–</td></tr>' in text
  assert "Known by the findings head" not in text
  for row, auc in zip(scores["known_findings"].values(), (0.9, 0.5)):
    row["head"] = {"auc": auc, "calibration_error": 0.02}
  page.write_page(tmp_path / "head.html", scores, studies, title="A title", findings=PHANTOM_FINDINGS, slots=SLOTS,
                  train_reports=TRAIN)
  with_head = squeeze((tmp_path / "head.html").read_text())
  assert "Known by the findings head, AUC" in with_head
  assert "<td>0.819<small>0.031</small></td><td>0.900<small>0.020</small></td><td>0.250</td>" in with_head
  averages = text[text.index("All averages of the label scores</summary>"):]
  assert '<th scope="col">Average</th><th scope="col">Precision</th>' in averages and "macro (present)" in averages


def test_the_forest_plot_has_every_system_with_interval_and_verdict(tmp_path, studies):
  scores = make_scores(studies, PHANTOM_FINDINGS)
  difference = lambda low, high: {"nlg": {"CIDEr": {"difference": (low + high) / 2, "low": low, "high": high}},
                                  "labels": None}
  scores["baselines"] |= {name: {"nlg": {"CIDEr": value}, "labels": None, "model_minus_this": difference(low, high)}
                          for name, value, low, high in (("constant", 1.7, 1.0, 2.0), ("nearest", 3.1, -0.2, 0.4),
                                                         ("medoid", 4.7, -2.0, -1.0))}
  scores["intervals"]["baselines"] = {"medoid": {"nlg": {"CIDEr": {"low": 4.5, "high": 4.9}}}}
  panel = make_forest(scores)[0]
  assert panel.title == "CIDEr" and panel.ticks == [0, 2, 4, 6, 8] and panel.largest == 8
  assert [(row.name, row.cell.value, row.verdict) for row in panel.rows] == [
      ("this model", 3.2, ""), ("shuffled images", 1.0, ""), ("constant report", 1.7, "ahead"),
      ("nearest image", 3.1, "unclear"), ("medoid of nearest images", 4.7, "behind")]
  assert (panel.rows[-1].cell.low, panel.rows[-1].cell.high) == (4.5, 4.9)
  page.write_page(tmp_path / "page.html", scores, [], title="A title", findings=PHANTOM_FINDINGS)
  text = (tmp_path / "page.html").read_text()
  drawn = text[text.index('<div class="forest"'):text.index("The band is")]
  assert drawn.count('<svg width="100%"') == sum(len(panel.rows) for panel in make_forest(scores))
  assert 'cx="40.0%"' in drawn and 'x="58.75' in drawn               # 3.2 and 4.7 of 8
  assert make_forest({}) == [] and make_forest({"nlg": {"r2gen": {"CIDEr": 1.0}}}) == []


def test_findings_without_a_reference_have_no_score(tmp_path, studies):
  scores = make_scores(studies, PHANTOM_FINDINGS)
  scores["labels"]["per_finding"]["Edema"] = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
  row, = (row for row in page_scores.make_finding_rows(scores) if row["name"] == "Edema")
  assert not any(row[rate].known for rate in ("precision", "recall", "f1"))
  page.write_page(tmp_path / "page.html", scores, [], title="A title", findings=PHANTOM_FINDINGS)
  text = (tmp_path / "page.html").read_text()
  edema = text[text.index('data-finding="Edema"'):]
  edema = edema[:edema.index('class="count"')]
  assert "<circle" not in edema and "no reference" in edema and "0.000" not in edema
