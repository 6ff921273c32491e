"""Mistyped names are reported before JAX is imported; every verb has an example; printed commands can be pasted."""

import json
import pathlib
import shlex
import subprocess
import sys

import pytest

from mcsam_jax import cli
from mcsam_jax.cli.arguments import join_config_values
from mcsam_jax.cli.main import make_parser, VERBS
from mcsam_jax.cli.verb import print_next_command
from mcsam_jax.config import default_config, flatten_config, load_config

ROOT = pathlib.Path(__file__).parents[3]
TRAIN = ["train", "--config", "phantom", "--workdir", "w"]


def run_in_process(arguments_list: list[list[str]]) -> list[tuple[object, str, list[str]]]:
  """Returns for each command its exit status, stderr, and the heavy libraries that were loaded, in one new process."""
  code = """
import contextlib, io, json, sys
from mcsam_jax.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
  stderr = io.StringIO()
  with contextlib.redirect_stderr(stderr):
    try:
      status = main(arguments)
    except SystemExit as exited:
      status = exited.code
  results.append([status, stderr.getvalue(), sorted({"jax", "flax", "tensorflow"} & sys.modules.keys())])
print(json.dumps(results))
"""
  run = subprocess.run([sys.executable, "-c", code, json.dumps(arguments_list)], capture_output=True, text=True,
                       cwd=ROOT, check=True)
  return json.loads(run.stdout)


def test_mistyped_names_are_reported_with_the_nearest_one_before_jax_is_imported():
  expected = {
      "train": ["trian"],
      "train.batch_size": [*TRAIN, "--config.train.batchsize=3"],
      "phantom": ["train", "--config", "phantmo", "--workdir", "w"],
      "--split": ["evaluate", "--workdir", "w", "--splt", "test"],
      "val": ["evaluate", "--workdir", "w", "--split", "vall"],
      "encoder": ["import-weights", "encodr", "a", "b"],
  }
  for (suggestion, _), (status, err, heavy) in zip(expected.items(), run_in_process(list(expected.values()))):
    assert status == 2 and heavy == [] and err.count("\n") == 1, err
    assert f"did you mean {suggestion}?" in err


def test_a_wrong_value_and_an_argument_of_another_verb_are_reported_before_jax_is_imported():
  (status, err, heavy), (other_status, other_err, other_heavy) = run_in_process([
      [*TRAIN, "--config.train.num_steps", "many"],
      ["score", "--predictions", "a", "--references", "b", "--config.seed=3"]])
  assert (status, heavy) == (2, []) and "train.num_steps=many" in err
  assert (other_status, other_heavy) == (2, []) and "--config.seed=3" in other_err


@pytest.mark.parametrize("argv, joined", [
    (["--config.seed", "3"], ["--config.seed=3"]),
    (["--config.seed=3", "4"], ["--config.seed=3", "4"]),
    (["--config.optimizer.learning_rate", "-1e-3"], ["--config.optimizer.learning_rate=-1e-3"]),
    (["--config", "phantom", "--config.seed", "--workdir", "w"], ["--config", "phantom", "--config.seed", "--workdir",
                                                                  "w"]),
    (["--config.train.best_metric", "", "x.png"], ["--config.train.best_metric=", "x.png"])])
def test_a_field_and_its_value_may_be_two_arguments(argv, joined):
  assert join_config_values(argv) == joined


def test_a_value_after_a_blank_is_not_taken_for_an_image():
  args, overrides = make_parser().parse_known_args(join_config_values(
      ["report", "--workdir", "w", "--config.decode.beam_size", "1", "a.png"]))
  assert args.images == ["a.png"] and overrides == ["--config.decode.beam_size=1"]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_each_verb_has_an_example_that_its_parser_accepts(verb, capsys):
  with pytest.raises(SystemExit):
    cli.main([verb.name, "--help"])
  assert f"\n  {verb.example}\n" in capsys.readouterr().out
  program, *arguments = shlex.split(verb.example)
  args, overrides = make_parser().parse_known_args(arguments)
  assert program == "mcsam" and args.verb == verb.name
  assert all(override.startswith("--config.") for override in overrides)


def test_printed_commands_can_be_pasted(capsys):
  print_next_command("train", "--workdir", "my runs/a'b", overrides=["--config.data.source_dir=/my images"])
  line = capsys.readouterr().out
  assert shlex.split(line.removeprefix("next: ")) == [
      "mcsam", "train", "--workdir", "my runs/a'b", "--config.data.source_dir=/my images"]


def test_config_show_prints_every_field_so_that_it_can_be_set_again(capsys):
  assert cli.main(["config", "show", "--config", "iu_xray", "--config.seed", "5"]) == 0
  lines = capsys.readouterr().out.splitlines()
  shown = [shlex.split(line, comments=True)[0] for line in lines]
  assert [line.partition("=")[0] for line in shown] == list(flatten_config(default_config()))
  assert "seed=5" in shown
  expected = load_config("iu_xray", ["--config.seed=5"])
  assert load_config("default", [f"--config.{line}" for line in shown]) == expected
  changed = {line.partition("=")[0] for line in lines if "# default: " in line}
  assert {"seed", "data.name"} <= changed and "train.compute_dtype" not in changed

  assert cli.main(["config", "show", "--config", "iu_xray", "--config.seed", "5", "--json"]) == 0
  assert json.loads(capsys.readouterr().out) == expected.to_dict()
