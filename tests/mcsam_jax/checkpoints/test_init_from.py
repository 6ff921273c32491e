"""A run that starts from another one gets copies of all it needs; another model is an error that names the field."""

import shutil

import jax
import numpy as np
import pytest

from input_pipeline.tokenizer import build_tokenizer
from mcsam_jax.checkpoints import workdir as workdirs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.init_from import (
  _abstract_variables,
  load_initial_variables,
  load_origin,
  parse_init_from,
  replace_variables,
)
from mcsam_jax.checkpoints.weights import flatten_variables
from mcsam_jax.checkpoints.workdir import create_workdir, open_workdir
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.errors import UserError
from tests.testing.tiny import make_config, NETWORK, PHANTOMS

FIELDS = NETWORK | PHANTOMS | {"train.num_steps": 100, "optimizer.ema_decay": 0.9, "train.best_metric": "CIDEr"}
SCORES = {10: 2.0, 20: 1.0}


def tiny(**changes):
  return make_config(FIELDS, **changes)


def silent(line):
  pass


@pytest.fixture(scope="module")
def module_patch():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(workdirs, "load_or_build_tokenizer",
                  lambda config, log: build_tokenizer(config, ["the lungs are clear .", "no effusion ."]))
    yield patch


def make_random_variables(config, workdir, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), _abstract_variables(config, workdir))


@pytest.fixture(scope="module")
def other(tmp_path_factory, module_patch):
  """Returns the workdir of a run with two checkpoints, and the averaged parameters of each."""
  path = tmp_path_factory.mktemp("other")
  workdir = create_workdir(path, tiny(), silent)
  checkpoints, averaged = Checkpoints(path, keep_last=2, best_metric="CIDEr"), {}
  for step, score in SCORES.items():
    variables, average = (make_random_variables(tiny(), workdir, step + offset) for offset in (0, 1))
    checkpoints.save(step, variables | {"ema_params": average["params"]}, {"CIDEr": score})
    averaged[step] = {"params": average["params"], "batch_stats": variables["batch_stats"]}
  checkpoints.close()
  return path, averaged


def load(path, log=silent, **changes):
  config = tiny(train__init_from=path, **changes)
  return config, load_origin(config, make_mesh(config), log)


def test_parsing():
  assert parse_init_from("runs/a") == (parse_init_from("runs/a@5")[0], None)
  assert parse_init_from("gs://bucket/a@b@12")[1] == 12 and str(parse_init_from("a@b")[0]) == "a@b"


@pytest.mark.parametrize("suffix, step", [("", 10), ("@20", 20)])
def test_averaged_parameters_of_the_best_or_a_given_step(other, suffix, step):
  path, averaged = other
  _, origin = load(f"{path}{suffix}")
  assert origin.step == step
  jax.tree.map(np.testing.assert_array_equal, origin.variables, averaged[step])


def test_a_new_workdir_needs_nothing_of_the_other(other, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(other[0], copy)
  config, origin = load(copy, optimizer__learning_rate=0.1, train__num_steps=7, optimizer__warmup_steps=1,
                        optimizer__ema_decay=0.0)
  create_workdir(tmp_path / "new", config, silent, origin)
  shutil.rmtree(copy)
  workdir = create_workdir(tmp_path / "new", config, silent)                     # a second start
  assert workdir.config.train.init_from == str(copy)
  assert workdir.tokenizer.get_vocabulary() == open_workdir(other[0]).tokenizer.get_vocabulary()
  initial = load_initial_variables(workdir)
  assert initial.keys() == flatten_variables(other[1][10]).keys()
  for name, value in flatten_variables(other[1][10]).items():
    np.testing.assert_array_equal(initial[name], value)


@pytest.mark.parametrize("field, value", [
    ("model.width", 32), ("model.num_heads", 4), ("tokenizer.max_length", 13), ("memory.top_k", 2),
    ("data.image_size", 64), ("model.use_alignment", False), ("data.num_views", 1)])
def test_another_model_is_an_error_that_names_the_field(other, field, value):
  with pytest.raises(UserError, match=f"{field}={value}"):
    load(other[0], **{field.replace(".", "__"): value})


def test_parts_that_the_other_run_lacks_are_initialized_freshly(tmp_path, module_patch):
  config = tiny(model__use_alignment=False, optimizer__ema_decay=0.0)
  workdir = create_workdir(tmp_path / "other", config, silent)
  saved = make_random_variables(config, workdir, 0)
  checkpoints = Checkpoints(workdir.path)
  checkpoints.save(10, saved, {})
  checkpoints.close()
  lines = []
  config, origin = load(tmp_path / "other", lines.append)
  assert len(lines) == 1 and "text_encoder" in lines[0] and "decoder" not in lines[0]
  work = create_workdir(tmp_path / "new", config, silent, origin)
  fresh = make_random_variables(config, work, 1)
  merged = replace_variables(fresh, load_initial_variables(work))
  for part, source in (("decoder", saved), ("text_encoder", fresh)):
    jax.tree.map(np.testing.assert_array_equal, merged["params"][part], source["params"][part])


def test_errors_name_what_is_missing(other, tmp_path):
  with pytest.raises(UserError, match="nowhere"):
    load(tmp_path / "nowhere")
  with pytest.raises(UserError, match="step 15.* 10, 20"):
    load(f"{other[0]}@15")
  shutil.copytree(other[0], tmp_path / "empty")
  shutil.rmtree(tmp_path / "empty" / "checkpoints")
  with pytest.raises(UserError, match="no checkpoint"):
    load(tmp_path / "empty")
