"""The HTML report in headless Chromium: sorting, filtering, keyboard and pointer."""

import base64
import contextlib
import json
import re

import numpy as np
import pytest

from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from mcsam_jax.html_report import page
from tests.testing.chromium import Browser, find_chromium
from tests.testing.synthetic_studies import GRID, make_scores, make_studies, SLOTS, TRAIN

pytestmark = pytest.mark.skipif(find_chromium() is None,
                                reason="no Chromium on this machine (Debian: apt install chromium)")
HOSTILE = '<img src="x" onerror="window.hacked = 1"></script><script>window.hacked = 1</script>'


@pytest.fixture(scope="module")
def studies():
  return make_studies(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  program = find_chromium()
  assert program is not None
  with contextlib.closing(Browser(program, tmp_path_factory.mktemp("profile"))) as browser:
    yield browser


def write_and_open(browser, folder, studies, **options):
  options = {"title": "A title", "findings": PHANTOM_FINDINGS, "slots": SLOTS, "train_reports": TRAIN} | options
  page.write_page(folder / "page.html", make_scores(studies, PHANTOM_FINDINGS), studies, **options)
  browser.open(folder / "page.html")


@pytest.fixture
def opened(browser, studies, tmp_path):
  browser.resize(1280, 900)
  write_and_open(browser, tmp_path, studies)
  return browser


def set_control(browser, control, value):
  """Sets a control as a user does; returns the milliseconds until the list is drawn."""
  return browser.evaluate(f"""new Promise((done) => {{
    const control = document.getElementById({json.dumps(control)}), start = performance.now();
    control.value = {json.dumps(value)};
    control.dispatchEvent(new Event("input", {{bubbles: true}}));
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
  }})""")


def list_studies(browser, max_studies=8):
  """Returns the first studies of the list in order, by moving through it with the keyboard."""
  studies = []
  count = int(re.findall(r"\d+", browser.evaluate("document.getElementById('count').textContent"))[0])
  browser.evaluate("document.activeElement.blur(); scrollTo(0, document.getElementById('list').offsetTop - 100)")
  browser.wait_for_frame()
  for _ in range(min(count, max_studies)):
    browser.press_key("j")
    studies.append(int(browser.evaluate("document.activeElement.dataset.study")))
  return studies


def find_maximum(browser, view):
  """Returns (x, y, alpha) of the maximum of the focused study's attention map, x and y in 0..1."""
  return browser.evaluate(f"""(() => {{
    const canvas = document.activeElement.querySelectorAll("canvas")[{view}];
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const alpha = pixels.filter((_, i) => i % 4 == 3);
    const best = alpha.reduce((best, value, i) => value > alpha[best] ? i : best, 0);
    return [best % canvas.width / canvas.width, Math.floor(best / canvas.width) / canvas.height, alpha[best]];
  }})()""")


def test_sorting_and_filtering(opened, studies):
  cider = [study["scores"]["CIDEr"] for study in studies]
  set_control(opened, "sort", "CIDEr")
  assert list_studies(opened) == np.argsort(cider)[:8].tolist()
  opened.evaluate("document.getElementById('direction').click()")
  set_control(opened, "low", "3.5")
  assert list_studies(opened) == [study for study in np.argsort(cider)[::-1].tolist() if cider[study] >= 3.5][:8]
  opened.evaluate("document.querySelector('button[type=reset]').click()")
  opened.wait_until("document.getElementById('count').textContent == '60 studies'")

  finding = "Pleural Effusion"
  is_missed = [study["reference_labels"][finding] == "positive" != study["labels"][finding] for study in studies]
  opened.evaluate(f"document.querySelector('[data-finding={json.dumps(finding)}]').click()")
  set_control(opened, "relation", "missed")
  assert list_studies(opened) == np.flatnonzero(is_missed)[:8].tolist() and any(is_missed)
  set_control(opened, "finding", "-1")
  set_control(opened, "relation", "right")
  right = [all((study["reference_labels"][name] == "positive") == (study["labels"][name] == "positive")
               for name in PHANTOM_FINDINGS) for study in studies]
  assert list_studies(opened) == np.flatnonzero(right)[:8].tolist()
  set_control(opened, "finding", str(PHANTOM_FINDINGS.index(finding)))
  right_on_finding = [(study["reference_labels"][finding] == "positive") == (study["labels"][finding] == "positive")
            for study in studies]
  assert list_studies(opened) == np.flatnonzero(right_on_finding)[:8].tolist() and sum(right_on_finding) > sum(right)
  set_control(opened, "finding", "-1")
  set_control(opened, "search", "study-00007")
  assert opened.evaluate("document.getElementById('count').textContent") == f"{int(right[7])} of 60 studies"
  set_control(opened, "search", "no such words")
  assert opened.evaluate("!document.getElementById('nothing').hidden && !document.querySelector('article')")


def test_keyboard_moves_through_words_and_shows_their_attention(opened, studies):
  opened.press_key("j")
  opened.press_key("j")                                            # the second study
  study = studies[1]
  assert opened.evaluate("document.activeElement.matches('article:focus-visible')")
  assert find_maximum(opened, 0)[2] == 0                       # no map without a word
  maxima = []
  for word in range(6):
    opened.press_key("ArrowRight")
    current = opened.evaluate("document.activeElement.querySelector('.word.current').textContent")
    assert current == study["explanation"].words[word]
    strongest = max(range(len(study["views"])), key=lambda view: study["explanation"].maps[word, view].max())
    x, y, alpha = find_maximum(opened, strongest)
    patch = int(study["explanation"].maps[word, strongest].argmax())
    assert alpha > 100 and abs(x * GRID - patch % GRID - 0.5) < 1 and abs(y * GRID - patch // GRID - 0.5) < 1
    announcement = opened.evaluate("document.getElementById('announcement').textContent")
    percent = 100 * np.exp(study["explanation"].log_probs[word])
    assert announcement.startswith(f"{study['explanation'].words[word]}. probability {percent:.1f} %")
    maxima.append((x, y))
  assert len(set(maxima)) > 3
  opened.press_key("ArrowLeft")
  assert opened.evaluate("document.activeElement.querySelector('.word.current').dataset.word") == "4"
  opened.press_key("Escape")
  assert find_maximum(opened, 0)[2] == 0 and not opened.evaluate("document.querySelector('.word.current')")
  opened.press_key("ArrowDown")
  assert opened.evaluate("document.activeElement.dataset.study") == "2"
  opened.press_key("m")
  opened.wait_until("document.activeElement.querySelector('.slots-and-neighbors')")
  shown = opened.evaluate("document.activeElement.querySelector('.slots-and-neighbors').textContent")
  for slot, _ in studies[2]["explanation"].slots:
    assert re.search(rf"slots? (\d+, )*{slot}\b", shown) and f"word{slot}" in shown
  assert all(TRAIN[record] in shown for record, _ in studies[2]["explanation"].neighbors)
  opened.press_key("/")
  assert opened.evaluate("document.activeElement.id") == "search"
  opened.press_key("Escape")
  opened.press_key("?")
  assert opened.evaluate("document.getElementById('help').open")


def test_pointer_shows_the_attention_of_a_word(opened):
  opened.evaluate("document.querySelector('article').scrollIntoView({block: 'center'})")
  opened.press_key("j")
  x, y = opened.evaluate("(() => { const word = document.activeElement.querySelectorAll('.word')[3];"
                      "const box = word.getBoundingClientRect();"
                      "return [box.x + box.width / 2, box.y + box.height / 2]; })()")
  opened.move_pointer(x, y)
  assert opened.evaluate("document.activeElement.querySelector('.word.current').dataset.word") == "3"
  assert max(find_maximum(opened, 0)[2], find_maximum(opened, 1)[2]) > 100
  opened.move_pointer(5, 5)
  assert not opened.evaluate("document.querySelector('.word.current')")


def test_marks_differ_not_only_by_color(opened, studies):
  set_control(opened, "relation", "missed")
  marks = opened.evaluate("[...document.querySelectorAll('#list mark')].map((mark) => [mark.className, "
                       "mark.querySelector('sup').textContent, getComputedStyle(mark).textDecorationStyle])")
  styles = {name: {tuple(style) for other_name, *style in marks if other_name == name} for name, *_ in marks}
  assert {"agree", "missed"} <= styles.keys() and all(len(each) == 1 for each in styles.values())
  assert len({sign for each in styles.values() for sign, _ in each}) == len(styles)


def test_hostile_text_stays_text_and_nothing_is_fetched(browser, studies, tmp_path):
  study = studies[0] | {"id": HOSTILE, "generated": HOSTILE, "reference": HOSTILE, "mentions": [],
                        "reference_mentions": [], "warnings": [HOSTILE]}
  write_and_open(browser, tmp_path, [study], title=HOSTILE, train_reports=[HOSTILE] * 40)
  browser.press_key("j")
  browser.press_key("m")
  assert browser.evaluate("document.querySelector('article h3').textContent") == HOSTILE
  assert browser.evaluate("document.querySelector('article .warning').textContent") == f"Warning: {HOSTILE}"
  assert browser.evaluate("document.querySelector('.slots-and-neighbors .report').textContent") == HOSTILE
  assert browser.evaluate("typeof window.hacked") == "undefined"
  requested = [event["params"]["request"]["url"] for event in browser.events
               if event.get("method") == "Network.requestWillBeSent"]
  assert [url for url in requested if not url.startswith("data:image/jpeg")] == [(tmp_path / "page.html").as_uri()]
  assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]


def test_small_screen_and_dark_theme(opened):
  light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
  opened.resize(390, 844, dark=True)
  opened.wait_for_frame()
  dark = opened.evaluate("getComputedStyle(document.body).backgroundColor")
  assert dark != light and opened.evaluate("document.documentElement.scrollWidth") == 390
  opened.evaluate("document.getElementById('theme').click()")                 # overrides the system's theme
  assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == light
  opened.evaluate("document.getElementById('theme').click(); document.getElementById('theme').click()")
  cards_are_separate = """(() => {
    const boxes = [...document.querySelectorAll("article")].map((card) => card.getBoundingClientRect());
    const gaps = boxes.slice(1).map((box, i) => box.top - boxes[i].bottom);
    return gaps.length > 1 && gaps.every((gap) => gap > 8 && gap < 40);
  })()"""
  for size in ((390, 844), (390, 700), (800, 700)):          # cards never overlap
    opened.resize(*size)
    opened.evaluate("scrollTo(0, document.getElementById('list').offsetTop)")
    opened.wait_until(cards_are_separate)


GAME = {"Pneumothorax": {"n": 46, "own_map": 0.46, "another_map": 0.22, "random_patch": 0.1, "difference": 0.24,
                         "low": 0.1, "high": 0.3},
        "all": {"n": 269, "own_map": 0.19, "another_map": 0.18, "random_patch": 0.14, "difference": 0.01, "low": -0.04,
                "high": 0.05}}


def test_printing_gives_every_study_with_its_images(opened, studies):
  """Also those that were never in sight, and after a filter those that it selects."""
  print_and_count = """new Promise((done) => {
    const drawn = [];
    window.print = () => {
      dispatchEvent(new Event("beforeprint"));
      drawn.push([...document.querySelectorAll("article")].map((card) => [Number(card.dataset.study),
        [...card.querySelectorAll("img")].every((image) => image.complete && image.naturalWidth > 0)]));
      dispatchEvent(new Event("afterprint"));
      done(drawn[0]);
    };
    document.getElementById("print").click();
  })"""
  assert opened.evaluate(print_and_count) == [[number, True] for number in range(len(studies))]
  assert opened.evaluate("document.querySelectorAll('article').length") < 30
  set_control(opened, "search", "study-0000")
  assert [number for number, _ in opened.evaluate(print_and_count)] == list(range(10))
  assert "10 of 60" in opened.evaluate("document.getElementById('print-note').textContent")
  set_control(opened, "search", "")
  pdf = base64.b64decode(opened("Page.printToPDF", printBackground=True)["data"])     # the browser's own command
  assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= len(studies) / 5


def test_beside_a_heat_map_stands_how_often_such_maps_are_right(browser, studies, tmp_path):
  browser.resize(1280, 900)
  for game, parts in ((GAME, ["46 %", "22 %"]), (None, ["not measured"])):
    write_and_open(browser, tmp_path, studies, pointing_game=game)
    assert ("19 %" if game else "not been measured") in browser.evaluate(
        "document.querySelector('.maps-caveat').textContent")
    number = next(number for number, study in enumerate(studies) if any(
        mention.finding == "Pneumothorax" and mention.label == "positive" for mention in study["mentions"]))
    set_control(browser, "search", studies[number]["id"])
    caveat = "document.querySelector('article .caveat')"
    assert browser.evaluate(f"getComputedStyle({caveat}).visibility") == "hidden"
    browser.evaluate("[...document.querySelectorAll('article .word')]"
                     ".find((word) => word.textContent == 'pneumothorax' && word.closest('mark')).click()")
    assert browser.evaluate(f"getComputedStyle({caveat}).visibility") == "visible"
    read_caveat = lambda: browser.evaluate(f"{caveat}.textContent").replace("\xa0", " ")
    assert all(part in read_caveat() for part in parts)
    browser.evaluate("document.querySelector('article .word').click()")           # a word that names no finding
    assert ("19 %" if game else "not measured") in read_caveat()


def test_details_that_differ_are_marked_and_can_be_selected(browser, studies, tmp_path):
  browser.resize(1280, 900)
  write_and_open(browser, tmp_path, studies)
  assert "size and side are not compared" in browser.evaluate("document.querySelector('.legend.marks').textContent")
  finding = "Cardiomegaly"
  both = [number for number, study in enumerate(studies)
          if study["labels"][finding] == study["reference_labels"][finding] == "positive"]
  compared = [study | {"differences": {finding: "mild instead of marked"} if number == both[0] else {}}
              for number, study in enumerate(studies)]
  write_and_open(browser, tmp_path, compared)
  assert "not compared" not in browser.evaluate("document.querySelector('.legend.marks').textContent")
  set_control(browser, "finding", str(PHANTOM_FINDINGS.index(finding)))
  set_control(browser, "relation", "differs")
  assert list_studies(browser) == both[:1]
  assert browser.evaluate("document.querySelector('article mark.differs sup').textContent") == "≈"
  assert "mild instead of marked" in browser.evaluate("document.querySelector('article .chips').textContent")
  set_control(browser, "relation", "agree")
  assert list_studies(browser) == both[:8]                           # it still agrees that the finding is there
  set_control(browser, "relation", "wrong")
  assert both[0] not in list_studies(browser, 60)


def test_a_phone_shows_that_the_table_scrolls_and_the_most_telling_scores_first(opened):
  opened.resize(390, 844)
  opened.wait_for_frame()
  assert opened.evaluate("document.documentElement.scrollWidth") == 390
  visible = opened.evaluate("""[...document.querySelectorAll(".main-scores thead th")].slice(1)
    .filter((cell) => cell.getBoundingClientRect().right <= 390).map((cell) => cell.textContent)""")
  assert visible == ["CIDEr", "micro-F1", "macro-F1"]
  assert opened.evaluate("getComputedStyle(document.querySelector('.scroll-hint')).display") == "block"
  opened.resize(1280, 900)
  assert opened.evaluate("getComputedStyle(document.querySelector('.scroll-hint')).display") == "none"


@pytest.mark.slow
def test_page_with_4000_studies_is_fast(browser, tmp_path, capsys):
  studies = make_studies(4000)
  browser.resize(1280, 900)
  write_and_open(browser, tmp_path, studies)
  paints, ready = [], []
  for _ in range(3):                                         # the minimum of three, since other programs run too
    browser.open(tmp_path / "page.html")
    paints.append(browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    ready.append(float(browser.evaluate("document.body.dataset.ready")))
  filters = {}
  for control, value in (("relation", "missed"), ("finding", "2"), ("search", "effusion"), ("sort", "CIDEr"),
                         ("relation", "wrong"), ("search", ""), ("finding", "-1"), ("relation", "any")):
    filters[control, value] = set_control(browser, control, value)
  browser.wait_until("(scrollTo(0, document.body.scrollHeight), "
                "[...document.querySelectorAll('article')].some((card) => card.getAttribute('aria-posinset') == 4000))")
  assert browser.evaluate("document.querySelectorAll('article').length") < 30
  assert browser.evaluate("document.querySelector('article img').src").endswith(".jpg")
  browser.wait_until("document.querySelector('article img').naturalWidth > 0")
  with capsys.disabled():
    size = (tmp_path / "page.html").stat().st_size
    print(f"\n4,000 studies, {size / 1e6:.0f} MB: first paint {min(paints):.0f} ms, list ready {min(ready):.0f} ms, "
          f"filters {', '.join(f'{time:.0f}' for time in filters.values())} ms")
  assert min(paints) < 2000 and min(ready) < 2000 and np.median(list(filters.values())) < 200
