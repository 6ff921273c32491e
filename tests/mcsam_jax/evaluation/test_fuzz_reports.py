"""Files of reports and annotations with random damage are read, or refused in one line without an id or a text.

The default tests try a few hundred files, the slow ones 20,000 of each kind.
"""

import csv
import io
import json
import os
import random
import resource
import time

import pytest

from input_pipeline import text
from input_pipeline import tokenizer as tokenizers
from input_pipeline.datasets import r2gen_json, records
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.compare import compare
from mcsam_jax.evaluation.report_files import match_studies, read_reports
from mcsam_jax.evaluation.score_files import score_files
from mcsam_jax.labelers.prior_mentions import find_prior_mentions
from mcsam_jax.labelers.rules import label_report
from mcsam_jax.metrics.protocols import clean_hypothesis
from tests.testing.foreign.mutations import mutate_bytes, mutate_json_file

SECONDS, MEGABYTES = 4, 300                # for one file, of which reading a good one takes a millisecond
SECRET = "qzx"                             # in every id and report, and in no message
REPORTS = {f"qzx{i}": report for i, report in enumerate((
    "The qzxheart is enlarged. No effusion.", "- No effusion\n- qzxheart: normal\n", "qzx caf\u00e9, edema; \u80ba"))}
ROWS = [{"id": name, "report": report, "generated": report, "subject_id": f"{name}s", "scores": {"green": 0.5},
         "labels": {"reference": {"Edema": "positive"}, "generated": {"Edema": "absent"}}}
        for name, report in REPORTS.items()]
ANNOTATION = {split: [{"id": f"qzx{split}{i}", "report": report, "image_path": [f"{split}/{i}.png", f"{i}.png"],
                       "split": split, "study_id": 7 + i + 10 * number, "subject_id": f"s{split}"}
                      for i, report in enumerate(REPORTS.values())]
              for number, split in enumerate(("train", "val", "test"))}


def write_csv(delimiter):
  file = io.StringIO()
  writer = csv.writer(file, delimiter=delimiter)
  writer.writerows([("id", "report"), *REPORTS.items()])
  return file.getvalue().encode()


FILES = {
    "x.json": json.dumps(ROWS).encode(), "ids.json": json.dumps(REPORTS).encode(),
    "annotation.json": json.dumps(ANNOTATION).encode(), "x.csv": write_csv(","), "x.tsv": write_csv("\t"),
    "x.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "x.txt": "".join(report.replace("\n", " ") + "\n" for report in REPORTS.values()).encode()}


def make_files(count, seed, names):
  """Yields (name, damaged content), the same ones for the same seed."""
  rng = random.Random(seed)
  for _ in range(count):
    name = rng.choice(names)
    yield name, (mutate_json_file if name.endswith(".json") else mutate_bytes)(FILES[name], rng)


def attempt(function, content):
  """Returns what a function returns, None where it refuses a file; its message has one line and no secret."""
  started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    return function()
  except UserError as error:
    message = str(error)
    assert "\n" not in message and len(message) < 1000 and SECRET not in message.lower(), (message, content[:3000])
    return None
  except Exception as error:
    raise AssertionError(f"{type(error).__name__}: {error} for {content[:3000]!r}") from error
  finally:
    assert time.process_time() - started < SECONDS, content[:3000]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES * 1024, content[:3000]


def read_and_use(path):
  """Reads a file as predictions and references, and does with its reports what scoring does."""
  references = read_reports(path, "references")
  predictions = read_reports(path, "predictions")
  assert match_studies(references, predictions) == list(range(len(references.texts)))
  for report in references.texts:
    label_report(report)
    find_prior_mentions(report)
    for rules in text.RULES:
      assert clean_hypothesis(report, rules).encode().decode() == clean_hypothesis(report, rules)
  return "".join(references.ids or ()).encode()


def read_and_build(path, show_ids):
  """Reads an annotation and makes records of its entries, without their images."""
  entries = r2gen_json.read_annotation(path, show_ids)
  reports = [entry["report"] for rows in entries.values() for entry in rows]
  tokenizer = tokenizers.WordTokenizer.train(reports, "iu_xray", 1, False)
  tokenizers.measure_unk_fraction(tokenizer, reports)
  builder = object.__new__(r2gen_json.R2GenJson)
  builder.source_dir, builder.data = path.parent, type("Data", (), {"short_side": 0, "dicom_rendering": ""})
  for entry in (entry for rows in entries.values() for entry in rows):
    json.dumps(entry)
    entry = {field: value for field, value in entry.items() if field != "views"}
    for image_path in entry["image_path"]:
      builder._find_image(image_path)
    records.serialize({**builder.build_record({**entry, "image_path": []}), "views": []})
  return entries


def fuzz_reports(folder, count, seed):
  for name, content in make_files(count, seed, [name for name in FILES if name != "annotation.json"]):
    (folder / name).write_bytes(content)
    attempt(lambda path=folder / name: read_and_use(str(path)), content)


def fuzz_annotations(folder, count, seed):
  path = folder / "annotation.json"
  for number, (_, content) in enumerate(make_files(count, seed, ["annotation.json"])):
    path.write_bytes(content)
    attempt(lambda: read_reports(str(path), "references"), content)
    attempt(lambda number=number: read_and_build(path, show_ids=False), content)


def fuzz_scores(folder, count, seed, monkeypatch):
  """The verbs themselves, with few resamples and without Java."""
  monkeypatch.setenv("PATH", str(folder))
  for module in ("score_files", "scoring", "compare"):
    monkeypatch.setattr(f"mcsam_jax.evaluation.{module}.resample", lambda subjects, seed: resample_few(subjects, seed))
  for name, content in make_files(count, seed, list(FILES)):
    path = folder / name
    path.write_bytes(content)
    def score(path=str(path)):
      return json.dumps(score_files(path, path, train=path, threshold=1, log=lambda line: line.encode()))
    def compare_with_itself(path=str(path)):
      return json.dumps(compare([path], [path], references=path, log=lambda line: line.encode()))
    attempt(score, content)
    attempt(compare_with_itself, content)
    attempt(lambda path=str(path): compare([path], [path], log=lambda line: line.encode()), content)


def resample_few(subjects, seed):
  from mcsam_jax.metrics.bootstrap import resample
  return resample(subjects, seed, 5)


def test_damaged_files_of_reports(tmp_path):
  fuzz_reports(tmp_path, 300, seed=1)


def test_damaged_annotations(tmp_path):
  fuzz_annotations(tmp_path, 250, 2)


def test_damaged_files_are_scored_and_compared(tmp_path, monkeypatch):
  fuzz_scores(tmp_path, 40, 3, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_damaged_files_of_reports(tmp_path, seed):
  fuzz_reports(tmp_path, int(os.environ.get("MCSAM_FUZZ", 20_000)) // 4, 100 + seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_damaged_annotations(tmp_path, seed):
  fuzz_annotations(tmp_path, int(os.environ.get("MCSAM_FUZZ", 20_000)) // 4, 200 + seed)


@pytest.mark.slow
def test_many_damaged_files_are_scored_and_compared(tmp_path, monkeypatch):
  fuzz_scores(tmp_path, int(os.environ.get("MCSAM_FUZZ", 20_000)) // 10, 300, monkeypatch)
