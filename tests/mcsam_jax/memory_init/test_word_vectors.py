from etils import epath
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.word_vectors import compute_tf_idf, find_content_words, make_word_vectors


def _reports():
  """Returns reports of two kinds, which share boilerplate, a number and a de-identification mark."""
  kinds = ("pacemaker lead tip ventricle atrium", "granuloma calcified nodule benign healed")
  return [f"the xxxx chest is {kinds[i % 2]} 12 ." for i in range(40)] + ["unique words here ."]


def test_content_words_exclude_function_words_boilerplate_and_rare_words():
  assert find_content_words(_reports()) == (
      "atrium", "benign", "calcified", "granuloma", "healed",
      "lead", "nodule", "pacemaker", "tip", "ventricle")


def test_words_of_the_same_reports_have_similar_vectors():
  words = make_word_vectors(_reports(), "", 2)
  cosine = dict(zip(words.words, words.vectors @ words.vectors[words.words.index("tip")]))
  assert words.vectors.shape == (10, 2)
  assert min(cosine["lead"], cosine["pacemaker"]) > 0.9
  assert max(cosine["granuloma"], cosine["nodule"]) < 0.1


def test_vectors_of_a_small_vocabulary_are_padded_with_zeros():
  words = make_word_vectors(_reports(), "", 32)
  np.testing.assert_allclose(np.linalg.norm(words.vectors, axis=1), 1, rtol=1e-6)
  assert (words.vectors[:, 10:] == 0).all()


def test_masses_are_normalized_tf_idf():
  reports = ["a b b", "a", "c", "c"]
  masses = compute_tf_idf(reports, ("a", "b", "c"))
  a, b = np.log(4 / 2), 2 * np.log(4 / 1)
  assert masses.indices[0].tolist() == [1, 0]                      # in descending order
  np.testing.assert_allclose(masses.masses[0], [b / (a + b), a / (a + b)], rtol=1e-6)
  np.testing.assert_allclose(masses.masses[1:], [[1, 0]] * 3)
  np.testing.assert_allclose(masses.sum_by_word(3), [a / (a + b) + 1, b / (a + b), 2], rtol=1e-6)


def test_reports_without_known_words_are_skipped():
  assert len(compute_tf_idf(["a", "nothing known", ""], ("a", "b")).masses) == 1


def test_vectors_are_read_from_a_file(tmp_path):
  given = {"tip": [3, 4], "lead": [0, 2], "other": [1, 1]}
  np.savez(tmp_path / "v.npz", words=list(given), vectors=list(given.values()))
  words = make_word_vectors(_reports(), str(tmp_path / "v.npz"), 2)
  assert words.words == ("lead", "tip")
  np.testing.assert_allclose(words.vectors, [[0, 1], [0.6, 0.8]], rtol=1e-6)


def test_invalid_vector_files_are_named(tmp_path):
  path = tmp_path / "v.npz"
  with pytest.raises(UserError, match="v.npz not found"):
    make_word_vectors(_reports(), str(path), 2)
  path.write_bytes(b"no archive")
  with pytest.raises(UserError, match="v.npz.*`words`"):
    make_word_vectors(_reports(), str(path), 2)
  np.savez(path, words=np.array(["tip"]))
  with pytest.raises(UserError, match="v.npz.*`words`"):
    make_word_vectors(_reports(), str(path), 2)
  np.savez(path, words=np.array(["tip"]), vectors=np.ones((2, 2)))
  with pytest.raises(UserError, match=r"v.npz.*1 words.*\(2, 2\)"):
    make_word_vectors(_reports(), str(path), 2)
  np.savez(path, words=np.array(["tip"]), vectors=np.ones((1, 300)))
  with pytest.raises(UserError, match="v.npz.*300.*memory.slot_width is 2"):
    make_word_vectors(_reports(), epath.Path(path), 2)
