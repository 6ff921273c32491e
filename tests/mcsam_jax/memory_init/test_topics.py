import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.memory_init import topics as topics_module
from mcsam_jax.memory_init.topics import learn_topics, solve_transport
from mcsam_jax.memory_init.word_vectors import compute_tf_idf, WordVectors

EPSILON = 0.05


def _problem():
  keys = jax.random.split(jax.random.key(0), 3)
  cost = jax.random.uniform(keys[0], (7, 4))
  masses = jnp.append(jax.nn.softmax(jax.random.normal(keys[1], (6,))), 0.0)        # padding
  return cost, masses, jax.nn.softmax(jax.random.normal(keys[2], (4,)))


def test_the_plan_moves_all_mass_and_padding_moves_none():
  cost, masses, mixture = _problem()
  plan = solve_transport(cost, masses, mixture, EPSILON).matrix
  np.testing.assert_allclose(plan.sum(1), masses, atol=1e-5)
  assert jnp.abs(plan.sum(0) - mixture).sum() < 0.01
  assert (plan[-1] == 0).all()


def test_gradient_agrees_with_finite_differences_and_is_finite_with_padding():
  cost, masses, mixture = _problem()
  value = jax.jit(lambda cost: solve_transport(cost, masses, mixture, EPSILON).reg_ot_cost)
  gradient = jax.grad(value)(cost)
  assert jnp.isfinite(gradient).all()
  direction = 1e-2 * jax.random.normal(jax.random.key(1), cost.shape)
  numeric = (value(cost + direction) - value(cost - direction)) / 2
  assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=0.1)


def _planted(num_topics=4, words_each=6):
  """Returns reports about one or two of four topics, and word vectors around four orthogonal directions."""
  rng = np.random.default_rng(0)
  names = [[f"{letter}{i}" for i in range(words_each)] for letter in "abcd"]
  reports = []
  for _ in range(300):
    report_topics = rng.choice(num_topics, 2)
    reports.append(" ".join(rng.choice(names[topic]) for topic in np.repeat(report_topics, 5)))
  flat = tuple(word for topic in names for word in topic)
  directions = np.eye(num_topics, 12)
  vectors = np.repeat(directions, words_each, 0) + 0.15 * rng.standard_normal((len(flat), 12))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  return WordVectors(flat, vectors.astype(np.float32)), compute_tf_idf(reports, flat)


def _learn(seed, steps=100):
  words, masses = _planted()
  return learn_topics(words, masses, 4, EPSILON, steps, batch_size=64, learning_rate=0.02,
                      rng=np.random.default_rng(seed), log=lambda line: None)


def test_planted_topics_are_recovered():
  words, _ = _planted()
  nearest = np.argsort(-_learn(0) @ words.vectors.T, axis=1)[:, :6]
  found = [{words.words[i][0] for i in row} for row in nearest]     # letters of its six nearest words
  assert sorted(map(sorted, found)) == [["a"], ["b"], ["c"], ["d"]]


def test_the_seed_determines_the_topics():
  first, again, other = _learn(3, steps=5), _learn(3, steps=5), _learn(4, steps=5)
  assert (first == again).all()
  assert not np.allclose(first, other)


def test_training_lowers_the_logged_transport_cost(monkeypatch):
  monkeypatch.setattr(topics_module, "LOG_EVERY", 1)
  words, masses = _planted()
  lines = []
  learn_topics(words, masses, 4, EPSILON, 60, 64, 0.02, np.random.default_rng(1), lines.append)
  costs = [float(line.split("cost ")[1].split(",")[0]) for line in lines]
  assert len(costs) == 60 and costs[-1] < 0.8 * costs[0]
