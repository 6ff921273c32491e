from etils import epath
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.word_vectors import find_content_words, compute_tf_idf, make_word_vectors


def _reports():
  """Reports of two kinds, which share boilerplate, a number and a mark of de-identification."""
  kinds = ("pacemaker lead tip ventricle atrium", "granuloma calcified nodule benign healed")
  return [f"the xxxx chest is {kinds[i % 2]} 12 ." for i in range(40)] + ["unique words here ."]


def test_content_words_are_neither_grammar_nor_boilerplate_nor_rare():
  assert find_content_words(_reports()) == (
      "atrium", "benign", "calcified", "granuloma", "healed",
      "lead", "nodule", "pacemaker", "tip", "ventricle")


def test_words_of_one_kind_of_report_lie_together():
  words = make_word_vectors(_reports(), "", 2)
  cosine = dict(zip(words.words, words.vectors @ words.vectors[words.words.index("tip")]))
  assert words.vectors.shape == (10, 2)
  assert min(cosine["lead"], cosine["pacemaker"]) > 0.9
  assert max(cosine["granuloma"], cosine["nodule"]) < 0.1


def test_a_small_vocabulary_fills_a_wide_slot_with_zeros():
  words = make_word_vectors(_reports(), "", 32)
  np.testing.assert_allclose(np.linalg.norm(words.vectors, axis=1), 1, rtol=1e-6)
  assert (words.vectors[:, 10:] == 0).all()


def test_masses_are_tf_idf_shares():
  reports = ["a b b", "a", "c", "c"]
  masses = compute_tf_idf(reports, ("a", "b", "c"))
  a, b = np.log(4 / 2), 2 * np.log(4 / 1)
  assert masses.indices[0].tolist() == [1, 0]                      # the heaviest word first
  np.testing.assert_allclose(masses.masses[0], [b / (a + b), a / (a + b)], rtol=1e-6)
  np.testing.assert_allclose(masses.masses[1:], [[1, 0]] * 3)
  np.testing.assert_allclose(masses.sum_by_word(3), [a / (a + b) + 1, b / (a + b), 2], rtol=1e-6)


def test_reports_without_content_have_no_row():
  assert len(compute_tf_idf(["a", "nothing known", ""], ("a", "b")).masses) == 1


def test_given_vectors_are_taken_for_the_words_that_they_know(tmp_path):
  given = {"tip": [3, 4], "lead": [0, 2], "other": [1, 1]}
  np.savez(tmp_path / "v.npz", words=list(given), vectors=list(given.values()))
  words = make_word_vectors(_reports(), str(tmp_path / "v.npz"), 2)
  assert words.words == ("lead", "tip")
  np.testing.assert_allclose(words.vectors, [[0, 1], [0.6, 0.8]], rtol=1e-6)


def test_bad_files_of_vectors_are_named(tmp_path):
  path = tmp_path / "v.npz"
  with pytest.raises(UserError, match="v.npz not found"):
    make_word_vectors(_reports(), str(path), 2)
  path.write_bytes(b"no archive")
  with pytest.raises(UserError, match="no .npz of `words`"):
    make_word_vectors(_reports(), str(path), 2)
  np.savez(path, words=np.array(["tip"]))
  with pytest.raises(UserError, match="no .npz of `words`"):
    make_word_vectors(_reports(), str(path), 2)
  np.savez(path, words=np.array(["tip"]), vectors=np.ones((2, 2)))
  with pytest.raises(UserError, match="1 words but vectors of shape"):
    make_word_vectors(_reports(), str(path), 2)
  np.savez(path, words=np.array(["tip"]), vectors=np.ones((1, 300)))
  with pytest.raises(UserError, match="300 wide, memory.slot_width is 2;"):
    make_word_vectors(_reports(), epath.Path(path), 2)
