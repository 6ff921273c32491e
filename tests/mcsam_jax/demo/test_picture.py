"""The demo's picture shows both views of each phantom and outlines what the report has missed."""

from etils import epath
import numpy as np
import PIL.Image

from input_pipeline.datasets.phantom.anatomy import draw_study
from input_pipeline.datasets.phantom.dataset import make_record
from mcsam_jax.demo.picture import compare_findings, draw_examples, MARKS


class Phantoms(list):
  name = "test"


def test_findings_of_two_reports_are_compared():
  reference = "The heart is mildly enlarged. There is a small left pleural effusion. No pneumothorax. Sternotomy wires."
  generated = "there is a small right pleural effusion . a large right pneumothorax is seen . wires after sternotomy ."
  assert compare_findings(reference, generated) == {
      "Cardiomegaly": "missed", "Pleural Effusion": "differs", "Pneumothorax": "invented", "Support Devices": "agrees"}


def test_missed_findings_are_outlined_on_both_views(tmp_path):
  number = next(number for number in range(40) if len((study := draw_study((0, 2, number))).views) == 2
                and "Pleural Effusion" in [finding.name for finding in study.findings])
  record = make_record(0, "test", number)
  study = {"record": 0, "id": record["id"], "reference": record["findings"]}
  colored = []
  for generated in (record["findings"], "the lungs are clear ."):
    path = epath.Path(tmp_path) / "demo.png"
    draw_examples([study | {"generated": generated}], Phantoms([record]), 0, path)
    pixels = np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)
    width = pixels.shape[1]
    is_outline = np.abs(pixels - (0xff, 0xb8, 0x4d)).max(-1) < 40
    colored.append([is_outline[:, :width // 4].sum(), is_outline[:, width // 4:width // 2].sum()])
    is_gray = np.ptp(pixels, -1) == 0
    assert all(np.ptp(pixels[is_gray & (np.arange(width) // (width // 4) == view)]) > 150 for view in range(2))
  assert colored[0] == [0, 0] and min(colored[1]) > 50


def test_marks_differ_in_sign_and_line():
  assert len({mark.sign for mark in MARKS.values()}) == len({mark.line for mark in MARKS.values()}) == len(MARKS)
