"""A comparison finds planted differences, and none where there are none; unusable files are named."""

import json

import numpy as np
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.cli import main
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.compare import compare, resample_runs
from mcsam_jax.findings import FINDINGS
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.bootstrap import map_leaves

WORDS = "the heart lungs are is clear normal no effusion seen enlarged small".split()


def read_labels(report):
  return {finding: "positive" if finding == "Cardiomegaly" and "enlarged" in report else "absent"
          for finding in FINDINGS}


@pytest.fixture(autouse=True)
def no_java_and_a_labeler(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  monkeypatch.setattr("mcsam_jax.evaluation.score_files.make_rules_labeler",
                      lambda: Labeler.from_function("rules", FINDINGS, read_labels))


def draw_reports(seed, count=80):
  """Returns random reports of 12 words."""
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS, 12)) + " ." for _ in range(count)]


def corrupt(reports, probability, seed):
  """Returns reports in which each word is replaced by a random one with this probability."""
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS) if rng.random() < probability else word for word in report.split())
          for report in reports]


def write(path, references, generated, **fields):
  """Writes a file as `mcsam evaluate` does, with two studies per subject; returns its path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(
      {"id": f"s{i}", "subject": f"p{i // 2}", "reference": reference, "generated": hypothesis,
       **{key: values[i] for key, values in fields.items()}}) + "\n"
      for i, (reference, hypothesis) in enumerate(zip(references, generated))))
  return str(path)


def run(a, b, **options):
  a, b = (arm if isinstance(arm, list) else [arm] for arm in (a, b))
  return compare(a, b, log=lambda line: None, **options)


def list_leaves(tree):
  leaves = []
  map_leaves(leaves.append, tree)
  return leaves


def test_a_run_does_not_differ_from_itself(tmp_path):
  references = draw_reports(0)
  paths = [write(tmp_path / f"{i}.jsonl", references, corrupt(references, 0.3, i)) for i in range(3)]
  for arm in (paths[:1], paths):
    result = run(arm, arm)
    assert all(value in (0, None) for value in list_leaves(result["a_minus_b"]))
    assert result["a"]["nlg"] == result["b"]["nlg"] and result["a"]["nlg"]["CIDEr"] > 0


def test_a_better_arm_is_found_and_equal_arms_do_not_differ(tmp_path):
  references = draw_reports(0)
  good, other, bad = ([write(tmp_path / f"{share}-{seed}.jsonl", references, corrupt(references, share, seed))
                       for seed in seeds] for share, seeds in ((0.2, (1, 2, 3)), (0.2, (4, 5, 6)), (0.35, (7, 8, 9))))
  better, even = run(good, bad)["a_minus_b"], run(good, other)["a_minus_b"]
  for metric in ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr"):
    assert better["nlg"][metric]["low"] > 0
    assert even["nlg"][metric]["low"] < 0 < even["nlg"][metric]["high"]
  assert better["nlg"]["METEOR"] is None
  reverse = run(bad, good)["a_minus_b"]["nlg"]["CIDEr"]
  assert reverse["difference"] == pytest.approx(-better["nlg"]["CIDEr"]["difference"])
  assert better["labels"]["per_finding"]["Cardiomegaly"]["f1"]["difference"] > 0


def test_an_arm_is_the_mean_of_its_runs(tmp_path):
  references = draw_reports(0)
  paths = [write(tmp_path / f"{i}.jsonl", references, corrupt(references, 0.1 + 0.2 * i, i)) for i in range(3)]
  both = run(paths[:2], paths[2])
  single = [run(path, paths[2]) for path in paths[:2]]
  for metric in ("BLEU_4", "CIDEr"):
    assert both["a"]["nlg"][metric] == pytest.approx(np.mean([one["a"]["nlg"][metric] for one in single]))
    assert [one[metric] for one in both["a"]["runs"]] == [one["a"]["nlg"][metric] for one in single]
  assert "seeds of B" in both["notes"]


def test_resampled_runs_vary_like_new_trainings():
  """The variance of a mean of k scores is their variance (k - 1 in its denominator) over k."""
  scores = np.array([1.0, 2.0, 4.0])
  (weights,) = resample_runs([3], 40_000, seed=0)
  np.testing.assert_allclose(weights.sum(1), 1)
  assert (weights @ scores).mean() == pytest.approx(scores.mean(), abs=0.02)
  assert (weights @ scores).var() == pytest.approx(scores.var(ddof=1) / 3, rel=0.03)
  first, second = resample_runs([3, 3], 100, seed=0)
  np.testing.assert_array_equal(first, second)                     # in pairs, as there are equally many
  first, second = resample_runs([3, 2], 100, seed=0)
  assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] < 0.5
  np.testing.assert_array_equal(resample_runs([1], 5, 0)[0], np.ones((5, 1)))


def test_stored_labels_are_used(tmp_path):
  references = draw_reports(0)
  no_findings = [{"reference": read_labels(text), "generated": read_labels("")} for text in references]
  perfect = [{"reference": read_labels(text), "generated": read_labels(text)} for text in references]
  a = write(tmp_path / "a.jsonl", references, corrupt(references, 0.5, 1), labels=no_findings)
  b = write(tmp_path / "b.jsonl", references, references, labels=perfect)
  result = run(a, b)
  assert result["labeler"] == "stored"
  assert result["support"]["Cardiomegaly"] == sum("enlarged" in text for text in references)
  assert result["a_minus_b"]["labels"]["micro"]["f1"]["difference"] == -1
  assert run(a, b, labeler="rules")["a"]["labels"]["micro"]["f1"] > 0
  c = write(tmp_path / "c.jsonl", references, corrupt(references, 0.5, 1), labels=perfect)
  with pytest.raises(UserError, match="c.jsonl line 1: .*labels.* --labeler rules"):
    run(a, c)


def test_stored_labels_belong_to_the_stored_references(tmp_path):
  references = draw_reports(0)
  perfect = [{"reference": read_labels(text), "generated": read_labels(text)} for text in references]
  a = write(tmp_path / "a.jsonl", references, references, labels=perfect)
  same, other = tmp_path / "same.txt", tmp_path / "other.txt"
  same.write_text("".join(text + "\n" for text in references))
  other.write_text("".join(text + " the heart is enlarged .\n" for text in references))
  assert run(a, a)["labeler"] == "stored"
  result = run(a, a, references=str(other))
  assert result["labeler"] == "rules" and result["support"]["Cardiomegaly"] == 80
  assert run(a, a, references=str(same), labeler="stored")["a"]["labels"]["micro"]["f1"] == 1       # without ids
  with pytest.raises(UserError, match="a.jsonl .*other.txt .*80 of 80 .*line 1 .*--labeler rules"):
    run(a, a, references=str(other), labeler="stored")


def test_a_field_labels_with_other_content_is_ignored(tmp_path):
  references = draw_reports(0)
  perfect = [{"reference": read_labels(text), "generated": read_labels(text)} for text in references]
  for foreign in (["Edema"], {"Edema": 1}, {"reference": ["Edema"], "generated": ["Edema"]},
                  {"reference": {"Edema": 1}, "generated": {"Edema": 0}}, "Edema", {},
                  {"reference": {"Edema": "absent"}, "generated": {"Fracture": "absent"}}):
    a = write(tmp_path / "a.jsonl", references, references, labels=[foreign] * 80)
    assert run(a, a)["labeler"] == "rules"
    b = write(tmp_path / "b.jsonl", references, references, labels=[*perfect[:79], foreign])
    with pytest.raises(UserError, match="b.jsonl line 80: no labels"):
      run(b, b)
  fewer = {"reference": {"Edema": "absent"}, "generated": {"Edema": "absent"}}
  b = write(tmp_path / "b.jsonl", references, references, labels=[*perfect[:79], fewer])
  with pytest.raises(UserError, match="b.jsonl line 80: .*labels.* --labeler rules"):
    run(b, b)


@pytest.mark.parametrize("content", [
    '{"preparation": ["a", "b"]}', '{"preparation": {"s1": "a"}}', '["preparation"]', "{", '{"s1": "a report"}',
    '{"preparation": null}'])
def test_a_json_file_of_the_same_name_may_hold_anything(tmp_path, content):
  references = draw_reports(0)
  a = write(tmp_path / "a.jsonl", references, references)
  (tmp_path / "a.json").write_text(content)
  result = run(a, a)
  assert (result["cleaning"], result["max_length"]) == ("iu_xray", 60)


def test_runs_with_different_preparation_need_a_choice_of_the_user(tmp_path):
  references = draw_reports(0)
  paths = []
  for name, cleaning, length in (("x", "iu_xray", 8), ("y", "iu_xray", 9), ("z", "mimic_cxr", 8)):
    paths.append(write(tmp_path / f"{name}.jsonl", references, references))
    (tmp_path / f"{name}.json").write_text(json.dumps({"preparation": {"cleaning": cleaning, "max_length": length}}))
  bare = write(tmp_path / "bare.jsonl", references, references)
  x, y, z = paths
  with pytest.raises(UserError, match="max_length .8, 9.: .* --max-length"):
    run([x, x], [x, y])
  with pytest.raises(UserError, match="cleaning .iu_xray, mimic_cxr.: .* --cleaning"):
    run(x, z)
  assert run(x, y, max_length=9)["max_length"] == 9
  assert run(x, z, cleaning="mimic_cxr")["cleaning"] == "mimic_cxr"
  assert run(bare, z)["cleaning"] == "mimic_cxr" and run(bare, z)["max_length"] == 8
  with pytest.raises(UserError, match="--max-length 0: .* 2"):
    run(x, x, max_length=0)


def test_subjects_come_from_the_runs_if_the_references_have_none(tmp_path):
  references = draw_reports(0)
  a = write(tmp_path / "a.jsonl", references, references)
  reverse = [*enumerate(references)][::-1]
  (tmp_path / "r.jsonl").write_text("".join(json.dumps({"id": f"s{i}", "ref": text}) + "\n" for i, text in reverse))
  bare = tmp_path / "bare.jsonl"
  bare.write_text("".join(json.dumps({"id": f"s{i}", "pred": text}) + "\n" for i, text in enumerate(references)))
  result = run(str(bare), a, references=str(tmp_path / "r.jsonl"))
  assert result["num_subjects"] == 40
  noisy = write(tmp_path / "noisy.jsonl", references, corrupt(references, 0.3, 1))
  separate, stored = run(a, noisy, references=str(tmp_path / "r.jsonl")), run(a, noisy)
  assert separate["a_minus_b"]["nlg"]["ROUGE_L"] == pytest.approx(stored["a_minus_b"]["nlg"]["ROUGE_L"])


def test_the_last_line_says_on_which_metrics_a_is_better(tmp_path):
  references, tables = draw_reports(0), []
  a, b = (write(tmp_path / f"{name}.jsonl", references, corrupt(references, probability, 0))
          for name, probability in (("a", 0), ("b", 0.6)))
  compare([a], [b], log=tables.append)
  compare([b], [a], log=tables.append)
  better, worse = (next(line for line in table.splitlines() if line.startswith("A compared with B: "))
                   for table in tables)
  assert "better on" in better and "CIDEr" in better or better.endswith("better on every metric")
  assert worse == better.replace("better", "worse")
  assert "\n-: no interval" in tables[0] and "20%" in tables[0]            # findings that no reference has


def test_fields_can_be_named(tmp_path):
  rows = [{"key": f"s{i}", "hypothesis_text": text, "reference_text": text} for i, text in enumerate(draw_reports(0))]
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  x = str(tmp_path / "x.jsonl")
  result = run(x, x, prediction_field="hypothesis_text", reference_field="reference_text", id_field="key")
  assert result["fields"] == {"references": "reference_text", "predictions": ["hypothesis_text"] * 2}
  assert main(["compare", x, x, "--prediction-field", "hypothesis_text", "--reference-field", "missing"]) == 2


def test_a_single_subject_gives_no_intervals(tmp_path):
  references, tables = draw_reports(0), []
  a = write(tmp_path / "a.jsonl", references, corrupt(references, 0.1, 0))
  b = write(tmp_path / "b.jsonl", references, corrupt(references, 0.6, 1))
  (tmp_path / "r.jsonl").write_text("".join(
      json.dumps({"id": f"s{i}", "ref": text, "subject": "p"}) + "\n" for i, text in enumerate(references)))
  result = compare([a], [b], references=str(tmp_path / "r.jsonl"), log=tables.append)
  cider = result["a_minus_b"]["nlg"]["CIDEr"]
  assert cider["difference"] > 0 and cider["low"] is None and "one subject" in result["notes"]["intervals"]
  (row,) = [line for line in tables[-1].splitlines() if line.startswith("CIDEr")]
  assert row.endswith(f"{cider['difference']:+.3f}   -") and "\n-: no interval" not in tables[-1]


def test_stored_radeval_scores_are_compared(tmp_path):
  references = draw_reports(0)
  make_scores = lambda values: [{"CIDEr": 1.0, "radgraph_simple": value} for value in values]
  a = write(tmp_path / "a.jsonl", references, references, scores=make_scores([None] + [0.5] * 79))
  b = write(tmp_path / "b.jsonl", references, references, scores=make_scores([0.2, 0.4] * 40))
  plain = write(tmp_path / "plain.jsonl", references, references)
  lines = []
  result = compare([a], [b], log=lines.append)
  assert result["a"]["radeval"] == {"radgraph_simple": 0.5}
  assert result["a_minus_b"]["radeval"]["radgraph_simple"]["difference"] == pytest.approx(0.2)
  assert "radgraph_simple (RadEval, stored)" in lines[0]
  assert run(a, plain)["a"]["radeval"] == run(a, b, references=plain)["a"]["radeval"] == {}


def test_r2gen_is_used_if_the_workdirs_have_one_vocabulary(tmp_path):
  references = draw_reports(0)
  paths = []
  for name, words in (("x", references), ("y", references), ("z", ["the heart is normal ."] * 5)):
    paths.append(write(tmp_path / name / "eval" / "test-7.jsonl", references, corrupt(references, 0.3, 0)))
    (tmp_path / name / "tokenizer").mkdir()
    WordTokenizer.train(words, "iu_xray", 1, False).save(tmp_path / name / "tokenizer")
    (tmp_path / name / "eval" / "test-7.json").write_text(json.dumps(
        {"preparation": {"cleaning": "iu_xray", "max_length": 8}}))
  same = run(paths[0], paths[1])
  assert (same["protocol"], same["max_length"]) == ("r2gen", 8)
  assert run(paths[0], paths[2])["protocol"] == "clean"                # the prepared references would differ
  with pytest.raises(UserError, match="--protocol r2gen .*--train"):
    run(paths[0], paths[2], protocol="r2gen")


def test_only_the_same_studies_with_the_same_references_are_compared(tmp_path):
  references = draw_reports(0)
  a = write(tmp_path / "a.jsonl", references, references)
  fewer = write(tmp_path / "fewer.jsonl", references[:78], references[:78])
  with pytest.raises(UserError, match="a.jsonl and .*fewer.jsonl .*studies: 2 .*first and 0 .*second"):
    run(a, fewer)
  other = write(tmp_path / "other.jsonl", [*references[:79], "something else ."], references)
  with pytest.raises(UserError, match="a.jsonl and .*other.jsonl .*1 of 80 .*line 80 .*--references"):
    run(a, other)
  bare = tmp_path / "bare.jsonl"
  bare.write_text("".join(json.dumps({"id": f"s{i}", "pred": text}) + "\n" for i, text in enumerate(references)))
  predictions = tmp_path / "p.csv"
  predictions.write_text("id,report\n" + "".join(f"s{i},clear\n" for i in range(80)))
  with pytest.raises(UserError, match=r"p.csv .*field report.* --references"):
    run(str(predictions), str(predictions))
  with pytest.raises(UserError, match="bare.jsonl .*--references"):
    run(str(bare), a)
  assert run(str(bare), a, references=a)["a_minus_b"]["nlg"]["CIDEr"]["difference"] == 0


def test_the_verb_prints_a_table_and_needs_two_arms(tmp_path, capsys):
  references = draw_reports(0)
  a, b = (write(tmp_path / f"{i}.jsonl", references, corrupt(references, probability, i))
          for i, probability in ((0, 0.1), (1, 0.6)))
  assert main(["compare", a, b, "--json", str(tmp_path / "c.json")]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "80 studies of 40 subjects, protocol clean, labels: rules" in lines[2]
  assert [line for line in lines if line.startswith("CIDEr")][0].endswith(" *")
  assert any(line.startswith("  Cardiomegaly") for line in lines)
  assert json.loads((tmp_path / "c.json").read_text())["num_subjects"] == 40
  for arguments in ([a], [a, "--b", b], [a, b, b], ["--a", a]):
    assert main(["compare", *arguments]) == 2
    assert "--a FILE... --b FILE..." in capsys.readouterr().err


def test_one_study_is_compared(tmp_path):
  for name in ("a", "b", "r"):
    (tmp_path / f"{name}.json").write_text('{"s": "lungs are clear \\ud83d"}')
  result = run(str(tmp_path / "a.json"), str(tmp_path / "b.json"), references=str(tmp_path / "r.json"),
               json_path=str(tmp_path / "out.json"))
  assert result["a"]["nlg"]["BLEU_1"] == pytest.approx(1) and result["a"]["nlg"]["CIDEr"] == 0
  assert result["a_minus_b"]["nlg"]["BLEU_1"] == {"difference": 0, "low": None, "high": None}
  assert {str(tmp_path / f"{name}.json") for name in "abr"} <= result["notes"].keys()
  assert json.loads((tmp_path / "out.json").read_text()) == result


def test_stored_scores_that_are_no_numbers_are_left_out(tmp_path):
  texts = draw_reports(0, 4)
  path = write(tmp_path / "x.jsonl", texts, texts, scores=[{"radgraph": "0.5", "green": 0.5, "x": [1]}] * 4)
  assert run(path, path)["a"]["radeval"] == {"green": 0.5}
