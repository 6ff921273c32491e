"""What a workdir accepts at a second start: the same config, other runtime fields, more steps."""

import json
import re
import types

from etils import epath
import pytest

from input_pipeline.tokenizer import build_tokenizer
from mcsam_jax.checkpoints import workdir as workdirs
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.config import read_config, VERSION_KEY
from mcsam_jax.errors import UserError
from tests.testing.tiny import make_config, NETWORK, PHANTOMS


@pytest.fixture(autouse=True)
def tokenizer_without_records(monkeypatch):
  monkeypatch.setattr(workdirs, "load_or_build_tokenizer",
                      lambda config, log: build_tokenizer(config, ["the lungs are clear .", "no effusion ."]))


def tiny(**changes):
  return make_config(NETWORK, PHANTOMS, train__num_steps=100, **changes)


def create(path, config):
  lines = []
  return workdirs.create_workdir(str(path), config, lines.append), lines


def test_a_second_start_with_the_same_config_changes_nothing(tmp_path):
  create(tmp_path, tiny())
  saved = (tmp_path / "config.json").read_text()
  work, lines = create(tmp_path, tiny(train__host_threads=3, prepare__num_workers=2))
  assert work.config.train.host_threads == 3 and not lines
  assert (tmp_path / "config.json").read_text() == saved


def test_a_run_is_extended_by_raising_num_steps_and_the_new_config_is_saved(tmp_path):
  create(tmp_path, tiny())
  work, lines = create(tmp_path, make_config(NETWORK, PHANTOMS, train__num_steps=150))
  assert work.config.train.num_steps == 150 and read_config(tmp_path / "config.json").train.num_steps == 150
  assert len(lines) == 1 and "100" in lines[0] and "150" in lines[0]
  assert workdirs.open_workdir(tmp_path).config.train.num_steps == 150
  assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".unfinished")] == []


@pytest.mark.parametrize("labels, has_labels, refused", [("records", True, False), ("records", False, True),
                                                         ("rules", False, False)])
def test_a_findings_head_learns_from_labels_of_an_annotation(tmp_path, monkeypatch, labels, has_labels, refused):
  records = [{"labels_from": ""}, {"labels_from": "annotation.json" if has_labels else ""}]
  monkeypatch.setattr(workdirs, "open_split",
                      lambda config, name: types.SimpleNamespace(read_blocks=lambda: iter([records])))
  config = tiny(data__name="r2gen_json", eval__labeler="rules", model__findings_head=True, train__labels=labels)
  if refused:
    with pytest.raises(UserError, match="model.findings_head.*train.labels=rules"):
      create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
  else:
    create(tmp_path / "run", config)


def test_a_run_is_not_shortened(tmp_path):
  create(tmp_path, tiny())
  with pytest.raises(UserError, match="train.num_steps=100.* 50") as error:
    create(tmp_path, make_config(NETWORK, PHANTOMS, train__num_steps=50))
  assert str(tmp_path) in str(error.value)
  assert read_config(tmp_path / "config.json").train.num_steps == 100


def test_a_run_is_not_extended_while_it_trains(tmp_path):
  create(tmp_path, tiny())
  with workdirs.acquire_lock(epath.Path(tmp_path)), pytest.raises(UserError, match="another run"):
    create(tmp_path, make_config(NETWORK, PHANTOMS, train__num_steps=150))
  assert read_config(tmp_path / "config.json").train.num_steps == 100


def test_more_steps_do_not_excuse_another_model(tmp_path):
  create(tmp_path, tiny())
  with pytest.raises(UserError, match="model.width: 32, 16"):
    create(tmp_path, make_config(NETWORK, PHANTOMS, train__num_steps=150, model__width=32))
  assert read_config(tmp_path / "config.json").train.num_steps == 100


def test_evaluation_can_not_override_the_number_of_steps(tmp_path):
  create(tmp_path, tiny())
  with pytest.raises(UserError, match="train.num_steps"):
    workdirs.open_workdir(tmp_path, ["--config.train.num_steps=150"])


def test_an_older_workdir_without_new_fields_is_opened_and_resumed(tmp_path):
  create(tmp_path, tiny())
  saved = json.loads((tmp_path / "config.json").read_text())
  del saved["model"]["align_on"], saved["train"]["remat"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  for open_it in (lambda lines: workdirs.open_workdir(tmp_path, [], lines.append),
                  lambda lines: workdirs.create_workdir(str(tmp_path), tiny(), lines.append)):
    lines = []
    assert open_it(lines).config.model.align_on == "response"
    line, = lines
    assert "model.align_on=response" in line and "train.remat=none" in line


def test_a_workdir_of_version_0_1_is_refused_at_every_start(tmp_path):
  create(tmp_path, tiny())
  saved = json.loads((tmp_path / "config.json").read_text())
  del saved[VERSION_KEY]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  for start in (lambda: workdirs.open_workdir(tmp_path), lambda: create(tmp_path, tiny())):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.json")) + ".* 0.1"):
      start()


def test_another_tokenizer_or_encoder_in_the_folder_is_not_replaced(tmp_path):
  weights = tmp_path / "weights.npz"
  config = tiny(encoder__weights=str(weights))
  save_weights(weights, init_encoder_variables(config), {"pretraining_data": "none"})
  for name, content in (("encoder.npz", b"somebody's"), ("tokenizer/tokenizer.json", b"somebody's")):
    path = tmp_path / name.replace("/", "-") / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    folder = tmp_path / name.replace("/", "-")
    with pytest.raises(UserError, match=str(path)):
      create(folder, config)
    assert path.read_bytes() == content and not (folder / "config.json").exists()
  create(tmp_path / "run", config)
  assert (tmp_path / "run" / "encoder.npz").read_bytes() == weights.read_bytes()


def test_a_start_that_was_interrupted_is_repeated(tmp_path):
  create(tmp_path, tiny())
  (tmp_path / "config.json").unlink()                   # written last
  work, _ = create(tmp_path, tiny())
  assert work.tokenizer.get_vocabulary()


def test_damaged_settings_of_a_memory_bank_are_named(tmp_path):
  settings = tmp_path / "memory_bank" / "made_from.json"
  settings.parent.mkdir()
  for content in (b"[" * 3000, b"\xff", b"{"):
    settings.write_bytes(content)
    with pytest.raises(UserError, match=str(settings)):
      create(tmp_path, tiny(memory_init__kind="topics", memory_init__num_topics=3))
