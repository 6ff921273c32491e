"""`mcsam_jax.load`: the reports of `mcsam evaluate` for every kind of input, log-probabilities, heat maps, arrays."""

import functools
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from input_pipeline import images
import mcsam_jax
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.demo.demo import write_image_files
from mcsam_jax.errors import UserError
from mcsam_jax.models.inputs import token_mask
from tests.testing.foreign.dicom_file import write_dicom
from tests.testing.tiny_workdir import generate_as_evaluate, STEP


@pytest.fixture(scope="module")
def model(tiny_model):
  return tiny_model


@pytest.fixture(scope="module")
def split(workdir):
  return open_workdir(workdir).open_split("val")


@pytest.fixture(scope="module")
def evaluated(workdir, split):
  """Returns the reports that `mcsam evaluate` generates of the val split."""
  return generate_as_evaluate(open_workdir(workdir), split)


@pytest.fixture(scope="module")
def files(split, tmp_path_factory):
  """Returns the image files of each val study."""
  root = tmp_path_factory.mktemp("images")
  for number, record in enumerate(split):
    write_image_files(record, root / f"{number}")
  return [sorted((root / f"{number}").iterdir()) for number in range(len(split))]


@pytest.fixture(scope="module")
def reports(model, split):
  """Returns the two best reports of each val study, from its record."""
  return model.generate(split, num_return=2)


def test_records_get_the_reports_of_evaluate(model, reports, evaluated):
  assert model.step == STEP and len(reports) == len(evaluated)
  for report, expected in zip(reports, evaluated):
    assert report.text == expected.text and report.search == "beam"
    assert report.log_prob == pytest.approx(expected.log_prob, abs=2e-3)
    assert report.views[0] == "frontal" and len(report.similarity) == len(report.views)


def test_files_get_the_reports_of_evaluate(model, files, evaluated):
  shuffled = [list(reversed(paths)) for paths in files]            # names say which is the frontal view
  for study, report, expected in zip(files, model.generate(shuffled[:4]), evaluated):
    assert report.text == expected.text, study
  assert model.generate(str(files[0][0].parent))[0].text == evaluated[0].text          # a folder
  assert model.generate([{"images": files[1], "views": ["frontal", "lateral"][:len(files[1])]}])[0].text == (
      evaluated[1].text)


def test_images_in_memory_get_the_reports_of_their_files(model, files, evaluated):
  opened = [[PIL.Image.open(path) for path in paths] for paths in files[:4]]
  contents = [[path.read_bytes() for path in paths] for paths in files[:4]]
  seen = [[model.preprocess(path) for path in paths] for paths in files[:4]]
  for kind in (opened, opened, contents, seen):       # the second time, pixels of the opened images have been read
    for report, expected in zip(model.generate(kind), evaluated):
      assert report.text == expected.text
      assert report.log_prob == pytest.approx(expected.log_prob, abs=2e-3)
    [[image.load() for image in study] for study in opened]


def test_nbest_are_different_and_their_tokens_sum_to_their_log_prob(model, reports):
  for report in reports:
    first, second = report.nbest
    assert first.text == report.text and list(second.ids) != list(first.ids)
    for each in report.nbest:
      assert len(each.tokens) == len(each.ids) == len(each.token_log_probs) <= 12
      assert each.token_log_probs.sum() == pytest.approx(each.log_prob, abs=1e-4)
      assert (each.token_log_probs <= 0).all() and model.tokenizer.decode(each.ids) == each.text
  assert str(reports[0])[0].isupper() or not reports[0].text


def test_token_log_probs_are_those_of_the_network_itself(model, split):
  """Compares with a forward pass of the Flax module, as a user would write it."""
  text = split.reports[0]
  scored = model.log_probs(split[0], text, truncate=True)
  batch = model._predictor.make_batch([model._read_one(split[0])])[0]
  tokens = jnp.asarray(np.repeat(model.tokenizer.encode_for_training(text, 12)[None], 4, 0))
  outputs = jax.jit(functools.partial(model.module.apply, train=False))(
      model.variables, batch["features"].astype(jnp.float32), batch["view_mask"], batch["view_ids"], tokens,
      token_mask(tokens, model.tokenizer.eos_id))
  expected = jax.nn.log_softmax(outputs.logits)[0, np.arange(len(scored.ids)), scored.ids]
  np.testing.assert_allclose(scored.token_log_probs, expected, rtol=1e-4)
  assert scored.tokens[-1] == "<eos>" and scored.log_prob == pytest.approx(float(expected.sum()), rel=1e-4)


def test_several_reports_can_be_scored_and_a_long_one_only_when_truncated(model, files):
  scored = model.log_probs(files[2], ["no effusion .", "the heart is normal ."])
  assert scored[1].text == "the heart is normal ." and len(scored[1].ids) == 6
  assert scored[1].log_prob == pytest.approx(model.log_probs(files[2], "the heart is normal .").log_prob, abs=1e-4)
  with pytest.raises(UserError, match="12"):
    model.log_probs(files[2], "the heart is normal . " * 4)


def test_searches_and_settings(model, split):
  greedy, = model.generate([split[0]], search="greedy")
  one_beam, = model.generate([split[0]], beam_size=1, length_penalty=0.0, token_log_probs=False)
  assert (greedy.search, one_beam.search) == ("greedy", "beam") and greedy.text == one_beam.text
  assert one_beam.token_log_probs is None
  sampled, = model.generate([split[0]], search="mbr", num_samples=4, num_return=3)
  assert sampled.search == "mbr" and len({each.text for each in sampled.nbest}) == len(sampled.nbest)
  for wrong in ({"search": "best"}, {"num_return": 3}, {"num_return": "2"}, {"num_return": 0}, {"beem_size": 3},
                {"beam_size": "x"}, {"beam_size": 0}, {"search": "greedy", "beam_size": 2}):
    with pytest.raises(UserError):
      model.generate([split[0]], **wrong)


def test_explanations_hold_a_map_per_word(model, files, evaluated):
  explanation = model.explain(files[1])
  assert " ".join(explanation.words) == explanation.text == evaluated[1].text
  num_views = len(files[1])
  assert explanation.heat_maps.shape == (len(explanation.words), num_views, 2, 2)
  np.testing.assert_allclose(explanation.heat_maps.max((1, 2, 3)), 1)
  np.testing.assert_allclose(explanation.heat_map(), explanation.heat_maps[:, 0].mean(0), rtol=1e-6)
  np.testing.assert_array_equal(explanation.heat_map(0), explanation.heat_maps[0, 0])
  assert explanation.heat_map(explanation.words[0]).shape == (2, 2)
  with pytest.raises(KeyError):
    explanation.heat_map("no such word")
  picture = explanation.overlay(0, size=64)
  assert picture.size == (64, 64) and picture.mode == "RGB"
  red, green, blue = np.asarray(picture, int).transpose(2, 0, 1)
  brightest = np.unravel_index(np.argmax(green - red), red.shape)              # lies in the brightest patch
  assert explanation.heat_maps[0, 0][brightest[0] // 32, brightest[1] // 32] == explanation.heat_maps[0, 0].max()
  slot, weight, description = explanation.slots[0]
  assert description == model.memory_topics()[slot] and 0 < weight <= 1
  given = model.explain(files[1], "the heart is normal .")
  assert given.words == ["the", "heart", "is", "normal", "."]
  np.testing.assert_allclose(given.log_probs, model.log_probs(files[1], given.text).token_log_probs[:5], atol=1e-4)


def test_encode_returns_one_vector_per_study(model, split):
  encoded = model.encode(split)
  assert encoded.patches.shape == (10, 2 * 4, 16) and encoded.image_embedding.shape == (10, 16)
  alone = model.encode([split[7]])
  np.testing.assert_allclose(alone.image_embedding[0], encoded.image_embedding[7], atol=1e-5)
  assert encoded.patch_mask.sum(1).tolist() == [4 * len(record["views"]) for record in split]


def test_preprocess_gives_the_pixels_of_evaluation(model, split, files):
  record = split[0]
  np.testing.assert_array_equal(model.preprocess(files[0][0]), images.decode(record["images"][0], 32))


def save_png(array, path):
  PIL.Image.fromarray(array).save(path)
  return path


def test_arrays_count_as_the_files_that_hold_them(model, tmp_path):
  rng = np.random.default_rng(0)
  gray, deep = rng.integers(0, 256, (90, 70), np.uint8), rng.integers(0, 60000, (70, 90), np.uint16)
  color = rng.integers(0, 256, (80, 80, 3), np.uint8)
  for array in (gray, deep, color):
    expected = model.preprocess(save_png(array, tmp_path / "image.png"))
    np.testing.assert_array_equal(model.preprocess(array), expected)
    np.testing.assert_array_equal(model.preprocess(PIL.Image.open(tmp_path / "image.png")), expected)
    buffer = io.BytesIO((tmp_path / "image.png").read_bytes())
    np.testing.assert_array_equal(model.preprocess(buffer.getvalue()), expected)
  # Floats are stretched from their minimum to their maximum, so their scale doesn't matter.
  np.testing.assert_array_equal(model.preprocess(deep / 3 - 7), model.preprocess(deep))
  report, = model.generate(color)
  assert any("color" in warning for warning in report.warnings)
  assert any("doesn't look like" in warning for warning in report.warnings)
  assert report.similarity[0] < model._predictor.ood_detector.threshold


@pytest.mark.parametrize("study, named", [
    ("no_such_file.png", "no_such_file.png"), ("a\0b.png", "studies[0]"), (b"not an image", "studies[0]"),
    ([], "studies[0]"), (3, "studies[0]"),
    (["no_such_file.png", np.zeros((9, 9), np.uint8)], "no_such_file.png"),
    (np.zeros((0, 9), np.uint8), "studies[0]"), (np.zeros((4, 9, 9, 9)), "studies[0]"),
    (np.full((9, 9), np.nan), "studies[0]"), (np.zeros((9, 9), complex), "studies[0]"),
    ([np.arange(81, dtype=np.uint8).reshape(9, 9), np.zeros(9, np.uint8)], "studies[0][1]"),
    ({"image": 1}, "studies[0]"),
    ({"images": [np.zeros((9, 9), np.uint8)], "views": ["pa"]}, "pa"),
    ({"images": [np.zeros((9, 9), np.uint8)], "views": []}, "studies[0]")])
def test_unusable_studies_are_named(model, study, named):
  with pytest.raises(UserError) as raised:
    model.generate([study])
  assert named in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_of_several_studies_is_not_taken_for_one(model, files):
  with pytest.raises(UserError, match="10"):
    model.generate(files[0][0].parent.parent)


def test_dicom_files_of_different_studies_are_warned_of(model, files, tmp_path, evaluated):
  two_views = next(number for number, paths in enumerate(files) if len(paths) == 2)
  frontal, lateral = files[two_views]
  write_dicom(lateral, tmp_path / "IM0", ViewPosition="LL")
  write_dicom(frontal, tmp_path / "IM1", ViewPosition="PA")
  write_dicom(frontal, tmp_path / "IM2", ViewPosition="PA", StudyInstanceUID="1.2.4")
  same, different = model.generate([[tmp_path / "IM0", tmp_path / "IM1"], [tmp_path / "IM0", tmp_path / "IM2"]])
  assert same.text == different.text == evaluated[two_views].text and same.views == ["frontal", "lateral"]
  assert len(different.warnings) == len(same.warnings) + 1


def test_loading_names_what_is_wrong(workdir, tmp_path):
  for arguments, named in (((tmp_path / "nothing",), "nothing"), ((workdir, 99), "99")):
    with pytest.raises(UserError, match=named):
      mcsam_jax.load(*arguments)
  with pytest.raises(UserError, match="modle"):
    mcsam_jax.load(workdir, mesh={"modle": 2})
  with pytest.raises(UserError, match="mesh.data=3"):
    mcsam_jax.load(workdir, mesh={"data": 3})


def test_importing_the_package_loads_neither_jax_nor_tensorflow():
  script = ("import sys, mcsam_jax\nassert not {'jax', 'numpy', 'tensorflow'} & sys.modules.keys()\n"
            "assert {'load', 'train', 'evaluate'} <= set(dir(mcsam_jax))\nassert mcsam_jax.UserError\n"
            "try:\n  mcsam_jax.lod\nexcept AttributeError as error:\n  assert 'lod' in str(error)")
  subprocess.run([sys.executable, "-c", script], check=True)
