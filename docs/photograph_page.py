"""Writes docs/images/page.png: one study on the HTML page of an evaluation, with the heat map of one word.

  python docs/photograph_page.py runs/demo/eval/test-STEP.html 20 pneumothorax     # page, number of the study, word

Needs Chromium; run it in the root of the repository.
"""

import contextlib
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tests.testing.chromium import Browser, find_chromium  # noqa: E402

PICTURE = pathlib.Path(__file__).parent / "images" / "page.png"
WIDTH, MARGIN = 1180, 12                  # pixels
MAX_WORDS = 200


def photograph(page: pathlib.Path, study: int, word: str) -> None:
  """Photographs a study, counted from 0, with the heat map of the first occurrence of a word in its report."""
  program = find_chromium()
  assert program, "needs Chromium"
  with tempfile.TemporaryDirectory() as profile, contextlib.closing(Browser(program, pathlib.Path(profile))) as browser:
    browser.resize(WIDTH, 1200)
    browser.open(page)
    browser.evaluate("document.querySelector('.bar').style.position = 'static'")
    for _ in range(study + 1):
      browser.press_key("j")
    is_shown = f"document.activeElement.querySelector('.current')?.textContent.startsWith({json.dumps(word)})"
    for _ in range(MAX_WORDS):
      if browser.evaluate(is_shown):
        break
      browser.press_key("ArrowRight")
    else:
      raise SystemExit(f"study {study} of {page} has no word {word}")
    height = browser.evaluate("Math.ceil(document.activeElement.getBoundingClientRect().height)")
    browser.resize(WIDTH, height + 2 * MARGIN)
    browser.evaluate(f"scrollTo(0, scrollY + document.activeElement.getBoundingClientRect().top - {MARGIN})")
    browser.save_screenshot(PICTURE)


if __name__ == "__main__":
  photograph(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
