"""A comparison finds what was planted, and nothing where there is nothing."""

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


def drawn(seed, count=80):
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS, 12)) + " ." for _ in range(count)]


def damaged(reports, share, seed):
  """Every word is another one with probability `share`."""
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS) if rng.random() < share else word for word in report.split())
          for report in reports]


def write(path, references, generated, **more):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(
      {"id": f"s{i}", "subject": f"p{i // 2}", "reference": meant, "generated": said,
       **{key: values[i] for key, values in more.items()}}) + "\n"
      for i, (meant, said) in enumerate(zip(references, generated))))
  return str(path)


def run(a, b, **options):
  a, b = (arm if isinstance(arm, list) else [arm] for arm in (a, b))
  return compare(a, b, log=lambda line: None, **options)


def leaves(tree):
  found = []
  map_leaves(found.append, tree)
  return found


def test_a_run_does_not_differ_from_itself(tmp_path):
  truth = drawn(0)
  paths = [write(tmp_path / f"{i}.jsonl", truth, damaged(truth, 0.3, i)) for i in range(3)]
  for arm in (paths[:1], paths):
    result = run(arm, arm)
    assert all(value in (0, None) for value in leaves(result["a_minus_b"]))
    assert result["a"]["nlg"] == result["b"]["nlg"] and result["a"]["nlg"]["CIDEr"] > 0


def test_the_better_arm_is_found_and_chance_is_not(tmp_path):
  truth = drawn(0)
  good, other, bad = ([write(tmp_path / f"{share}-{seed}.jsonl", truth, damaged(truth, share, seed))
                       for seed in seeds] for share, seeds in ((0.2, (1, 2, 3)), (0.2, (4, 5, 6)), (0.35, (7, 8, 9))))
  better, even = run(good, bad)["a_minus_b"], run(good, other)["a_minus_b"]
  for metric in ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr"):
    assert better["nlg"][metric]["low"] > 0
    assert even["nlg"][metric]["low"] < 0 < even["nlg"][metric]["high"]
  assert better["nlg"]["METEOR"] is None
  turned = run(bad, good)["a_minus_b"]["nlg"]["CIDEr"]
  assert turned["difference"] == pytest.approx(-better["nlg"]["CIDEr"]["difference"])
  assert better["labels"]["per_finding"]["Cardiomegaly"]["f1"]["difference"] > 0


def test_an_arm_is_the_mean_of_its_runs(tmp_path):
  truth = drawn(0)
  paths = [write(tmp_path / f"{i}.jsonl", truth, damaged(truth, 0.1 + 0.2 * i, i)) for i in range(3)]
  both = run(paths[:2], paths[2])
  single = [run(path, paths[2]) for path in paths[:2]]
  for metric in ("BLEU_4", "CIDEr"):
    assert both["a"]["nlg"][metric] == pytest.approx(np.mean([one["a"]["nlg"][metric] for one in single]))
    assert [one[metric] for one in both["a"]["runs"]] == [one["a"]["nlg"][metric] for one in single]
  assert "seeds of B" in both["notes"]


def test_draws_of_runs_vary_as_new_trainings_would():
  """The variance of a mean of k scores is their variance (k - 1 in its denominator) over k."""
  scores = np.array([1.0, 2.0, 4.0])
  (weights,) = resample_runs([3], 40_000, seed=0)
  np.testing.assert_allclose(weights.sum(1), 1)
  assert (weights @ scores).mean() == pytest.approx(scores.mean(), abs=0.02)
  assert (weights @ scores).var() == pytest.approx(scores.var(ddof=1) / 3, rel=0.03)
  first, second = resample_runs([3, 3], 100, seed=0)
  np.testing.assert_array_equal(first, second)                     # paired, where there are as many
  first, second = resample_runs([3, 2], 100, seed=0)
  assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] < 0.5
  np.testing.assert_array_equal(resample_runs([1], 5, 0)[0], np.ones((5, 1)))


def test_labels_that_the_files_hold_are_used(tmp_path):
  truth = drawn(0)
  stated = [{"reference": read_labels(text), "generated": read_labels("")} for text in truth]
  perfect = [{"reference": read_labels(text), "generated": read_labels(text)} for text in truth]
  a = write(tmp_path / "a.jsonl", truth, damaged(truth, 0.5, 1), labels=stated)
  b = write(tmp_path / "b.jsonl", truth, truth, labels=perfect)
  result = run(a, b)
  assert result["labeler"] == "stored"
  assert result["support"]["Cardiomegaly"] == sum("enlarged" in text for text in truth)
  assert result["a_minus_b"]["labels"]["micro"]["f1"]["difference"] == -1
  assert run(a, b, labeler="rules")["a"]["labels"]["micro"]["f1"] > 0
  turned = write(tmp_path / "c.jsonl", truth, damaged(truth, 0.5, 1), labels=perfect)
  with pytest.raises(UserError, match="c.jsonl line 1: its labels differ from .* choose --labeler rules"):
    run(a, turned)


def test_stored_labels_are_of_the_stored_references(tmp_path):
  truth = drawn(0)
  perfect = [{"reference": read_labels(text), "generated": read_labels(text)} for text in truth]
  a = write(tmp_path / "a.jsonl", truth, truth, labels=perfect)
  same, other = tmp_path / "same.txt", tmp_path / "other.txt"
  same.write_text("".join(text + "\n" for text in truth))
  other.write_text("".join(text + " the heart is enlarged .\n" for text in truth))
  assert run(a, a)["labeler"] == "stored"
  result = run(a, a, references=str(other))
  assert result["labeler"] == "rules" and result["support"]["Cardiomegaly"] == 80
  assert run(a, a, references=str(same), labeler="stored")["a"]["labels"]["micro"]["f1"] == 1       # without ids
  with pytest.raises(UserError, match="labels in .*a.jsonl are of other references than .*other.txt for 80 of 80 "
                                      "studies .the first: line 1 of the latter.: choose --labeler rules"):
    run(a, a, references=str(other), labeler="stored")


def test_what_is_called_labels_but_is_none_is_left_alone(tmp_path):
  truth = drawn(0)
  perfect = [{"reference": read_labels(text), "generated": read_labels(text)} for text in truth]
  for foreign in (["Edema"], {"Edema": 1}, {"reference": ["Edema"], "generated": ["Edema"]},
                  {"reference": {"Edema": 1}, "generated": {"Edema": 0}}, "Edema", {},
                  {"reference": {"Edema": "absent"}, "generated": {"Fracture": "absent"}}):
    a = write(tmp_path / "a.jsonl", truth, truth, labels=[foreign] * 80)
    assert run(a, a)["labeler"] == "rules"
    b = write(tmp_path / "b.jsonl", truth, truth, labels=[*perfect[:79], foreign])
    with pytest.raises(UserError, match="b.jsonl line 80: no labels as evaluations store them"):
      run(b, b)
  fewer = {"reference": {"Edema": "absent"}, "generated": {"Edema": "absent"}}
  b = write(tmp_path / "b.jsonl", truth, truth, labels=[*perfect[:79], fewer])
  with pytest.raises(UserError, match="b.jsonl line 80: its labels differ .* or are of other findings"):
    run(b, b)


@pytest.mark.parametrize("beside", ['{"preparation": ["a", "b"]}', '{"preparation": {"s1": "a"}}', '["preparation"]', "{",
                                    '{"s1": "a report"}', '{"preparation": null}'])
def test_a_json_beside_the_predictions_may_be_anything(tmp_path, beside):
  truth = drawn(0)
  a = write(tmp_path / "a.jsonl", truth, truth)
  (tmp_path / "a.json").write_text(beside)
  result = run(a, a)
  assert (result["cleaning"], result["max_length"]) == ("iu_xray", 60)


def test_runs_that_were_evaluated_differently_need_a_word_of_the_user(tmp_path):
  truth = drawn(0)
  paths = []
  for name, cleaning, length in (("x", "iu_xray", 8), ("y", "iu_xray", 9), ("z", "mimic_cxr", 8)):
    paths.append(write(tmp_path / f"{name}.jsonl", truth, truth))
    (tmp_path / f"{name}.json").write_text(json.dumps({"preparation": {"cleaning": cleaning, "max_length": length}}))
  bare = write(tmp_path / "bare.jsonl", truth, truth)
  x, y, z = paths
  with pytest.raises(UserError, match="different values of max_length .8, 9.: choose one for all with --max-length"):
    run([x, x], [x, y])
  with pytest.raises(UserError, match="different values of cleaning .iu_xray, mimic_cxr.: .* with --cleaning"):
    run(x, z)
  assert run(x, y, max_length=9)["max_length"] == 9
  assert run(x, z, cleaning="mimic_cxr")["cleaning"] == "mimic_cxr"
  assert run(bare, z)["cleaning"] == "mimic_cxr" and run(bare, z)["max_length"] == 8
  with pytest.raises(UserError, match="--max-length 0: at least 2"):
    run(x, x, max_length=0)


def test_subjects_of_the_runs_count_where_the_references_have_none(tmp_path):
  truth = drawn(0)
  a = write(tmp_path / "a.jsonl", truth, truth)
  turned = [*enumerate(truth)][::-1]
  (tmp_path / "r.jsonl").write_text("".join(json.dumps({"id": f"s{i}", "ref": text}) + "\n" for i, text in turned))
  bare = tmp_path / "bare.jsonl"
  bare.write_text("".join(json.dumps({"id": f"s{i}", "pred": text}) + "\n" for i, text in enumerate(truth)))
  result = run(str(bare), a, references=str(tmp_path / "r.jsonl"))
  assert result["num_subjects"] == 40
  noisy = write(tmp_path / "noisy.jsonl", truth, damaged(truth, 0.3, 1))
  given, own = run(a, noisy, references=str(tmp_path / "r.jsonl")), run(a, noisy)
  assert given["a_minus_b"]["nlg"]["ROUGE_L"] == pytest.approx(own["a_minus_b"]["nlg"]["ROUGE_L"])


def test_the_last_line_says_where_a_is_ahead(tmp_path):
  truth, said = drawn(0), []
  a, b = (write(tmp_path / f"{name}.jsonl", truth, damaged(truth, share, 0)) for name, share in (("a", 0), ("b", 0.6)))
  compare([a], [b], log=said.append)
  compare([b], [a], log=said.append)
  ahead, behind = (next(line for line in text.splitlines() if line.startswith("A against B: ")) for text in said)
  assert "ahead on" in ahead and "CIDEr" in ahead or ahead.endswith("ahead on every score")
  assert behind == ahead.replace("ahead", "behind")
  assert "\n-: more than 20% of the draws hold nothing of it" in said[0]           # of findings that nobody has


def test_fields_can_be_named(tmp_path):
  rows = [{"key": f"s{i}", "ours": text, "theirs": text} for i, text in enumerate(drawn(0))]
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  x = str(tmp_path / "x.jsonl")
  result = run(x, x, prediction_field="ours", reference_field="theirs", id_field="key")
  assert result["fields"] == {"references": "theirs", "predictions": ["ours", "ours"]}
  assert main(["compare", x, x, "--prediction-field", "ours", "--reference-field", "their"]) == 2


def test_a_single_subject_gives_no_intervals(tmp_path):
  truth, said = drawn(0), []
  a = write(tmp_path / "a.jsonl", truth, damaged(truth, 0.1, 0))
  b = write(tmp_path / "b.jsonl", truth, damaged(truth, 0.6, 1))
  (tmp_path / "r.jsonl").write_text("".join(
      json.dumps({"id": f"s{i}", "ref": text, "subject": "p"}) + "\n" for i, text in enumerate(truth)))
  result = compare([a], [b], references=str(tmp_path / "r.jsonl"), log=said.append)
  lead = result["a_minus_b"]["nlg"]["CIDEr"]
  assert lead["difference"] > 0 and lead["low"] is None and "one subject" in result["notes"]["intervals"]
  (row,) = [line for line in said[-1].splitlines() if line.startswith("CIDEr")]
  assert row.endswith(f"{lead['difference']:+.3f}   -") and "of the draws" not in said[-1]


def test_scores_by_radeval_that_the_files_hold_are_compared(tmp_path):
  truth, ours = drawn(0), lambda values: [{"CIDEr": 1.0, "radgraph_simple": value} for value in values]
  a = write(tmp_path / "a.jsonl", truth, truth, scores=ours([None] + [0.5] * 79))
  b = write(tmp_path / "b.jsonl", truth, truth, scores=ours([0.2, 0.4] * 40))
  plain = write(tmp_path / "plain.jsonl", truth, truth)
  lines = []
  result = compare([a], [b], log=lines.append)
  assert result["a"]["radeval"] == {"radgraph_simple": 0.5}
  assert result["a_minus_b"]["radeval"]["radgraph_simple"]["difference"] == pytest.approx(0.2)
  assert "radgraph_simple (RadEval, stored)" in lines[0]
  assert run(a, plain)["a"]["radeval"] == run(a, b, references=plain)["a"]["radeval"] == {}


def test_r2gen_where_workdirs_have_one_vocabulary(tmp_path):
  truth = drawn(0)
  paths = []
  for name, words in (("x", truth), ("y", truth), ("z", ["the heart is normal ."] * 5)):
    paths.append(write(tmp_path / name / "eval" / "test-7.jsonl", truth, damaged(truth, 0.3, 0)))
    (tmp_path / name / "tokenizer").mkdir()
    WordTokenizer.train(words, "iu_xray", 1, False).save(tmp_path / name / "tokenizer")
    (tmp_path / name / "eval" / "test-7.json").write_text(json.dumps(
        {"preparation": {"cleaning": "iu_xray", "max_length": 8}}))
  same = run(paths[0], paths[1])
  assert (same["protocol"], same["max_length"]) == ("r2gen", 8)
  assert run(paths[0], paths[2])["protocol"] == "clean"                # references would differ
  with pytest.raises(UserError, match="--protocol r2gen needs one vocabulary for all runs"):
    run(paths[0], paths[2], protocol="r2gen")


def test_only_the_same_studies_with_the_same_references_are_compared(tmp_path):
  truth = drawn(0)
  a = write(tmp_path / "a.jsonl", truth, truth)
  fewer = write(tmp_path / "fewer.jsonl", truth[:78], truth[:78])
  with pytest.raises(UserError, match="a.jsonl and .*fewer.jsonl are about different studies: 2 are only in the first "
                                      "and 0 only in the second"):
    run(a, fewer)
  other = write(tmp_path / "other.jsonl", [*truth[:79], "something else ."], truth)
  with pytest.raises(UserError, match="different references for 1 of 80 studies .the first: line 80 of the former."):
    run(a, other)
  bare = tmp_path / "bare.jsonl"
  bare.write_text("".join(json.dumps({"id": f"s{i}", "pred": text}) + "\n" for i, text in enumerate(truth)))
  predictions = tmp_path / "p.csv"
  predictions.write_text("id,report\n" + "".join(f"s{i},clear\n" for i in range(80)))
  with pytest.raises(UserError, match=r"p.csv holds predictions \(its field report\) and no references: give these with"):
    run(str(predictions), str(predictions))
  with pytest.raises(UserError, match="give the references with --references"):
    run(str(bare), a)
  assert run(str(bare), a, references=a)["a_minus_b"]["nlg"]["CIDEr"]["difference"] == 0


def test_the_verb_prints_a_table_and_refuses_half_of_a_question(tmp_path, capsys):
  truth = drawn(0)
  a, b = (write(tmp_path / f"{i}.jsonl", truth, damaged(truth, share, i)) for i, share in ((0, 0.1), (1, 0.6)))
  assert main(["compare", a, b, "--json", str(tmp_path / "c.json")]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "80 studies of 40 subjects, protocol clean, labels: rules" in lines[2]
  assert [line for line in lines if line.startswith("CIDEr")][0].endswith(" *")
  assert any(line.startswith("  Cardiomegaly") for line in lines)
  assert json.loads((tmp_path / "c.json").read_text())["num_subjects"] == 40
  for arguments in ([a], [a, "--b", b], [a, b, b], ["--a", a]):
    assert main(["compare", *arguments]) == 2
    assert "give two files, or the runs of each arm" in capsys.readouterr().err
