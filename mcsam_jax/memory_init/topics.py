"""Learns topics of the reports by optimal transport (neural Sinkhorn topic model; Zhao et al., ICLR 2021).

Each report is a distribution over words and has a mixture over topics. Topics are
vectors in the space of the word vectors; moving mass from a word to a topic costs one
minus their cosine. Topics and mixtures are learned jointly by minimizing the entropic
transport cost between the two distributions of each report. Unlike clusters of words,
such topics model co-occurrence: the words of a report have to be covered by few topics.

The transport cost alone would let all topics collapse to the mean of the words, so the
topics are also trained to reconstruct the words of the reports, as in the same paper.
There the costs are mixed before the softmax over words; here each topic is its own
distribution over words, which keeps it interpretable.

Shapes: B reports, U words of a report (padded with mass 0), W words, K topics, D width.
"""

from collections.abc import Callable
import functools
import time
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ott.geometry import geometry
from ott.solvers import linear
from ott.solvers.linear import sinkhorn

from mcsam_jax.memory_init.kmeans import sample_initial_centers
from mcsam_jax.memory_init.word_vectors import TfIdfReports, WordVectors

HIDDEN_WIDTH = 128          # hidden width of the topic mixture network
TYPICAL_WORDS = 10          # typical number of content words in a report, which scales the network's inputs
UNIFORM_SHARE = 1e-3        # part of each mixture that is uniform over topics
TEMPERATURE = 0.2           # temperature of a topic's softmax over words; lower values give topics of rare words
MAX_ITERATIONS = 50         # maximum number of Sinkhorn iterations
MARGINAL_ERROR = 1e-2       # Sinkhorn stops when the error of the marginals is below this
INITIAL_NOISE = 0.2         # norm of the noise added to the initial topics
LOG_EVERY = 100             # steps


class TopicMixtureNetwork(nn.Module):
  """Predicts the topic mixture of a report from its words."""
  num_topics: int

  @nn.compact
  def __call__(self, reports: jax.Array) -> jax.Array:
    """Returns topic mixtures [B, K], all positive, for tf-idf distributions [B, W]."""
    hidden = nn.relu(nn.Dense(HIDDEN_WIDTH)(reports * TYPICAL_WORDS))         # inputs of order one
    mixture = nn.softmax(nn.Dense(self.num_topics)(hidden))
    return (1 - UNIFORM_SHARE) * mixture + UNIFORM_SHARE / self.num_topics    # log(0) has no gradient


def solve_transport(cost: jax.Array, masses: jax.Array, mixture: jax.Array,
                    epsilon: float) -> sinkhorn.SinkhornOutput:
  """Solves the entropic transport from `masses` [U] to `mixture` [K] with costs `cost` [U, K].

  The output's `reg_ot_cost` is differentiable with respect to all three arguments. By
  the envelope theorem no gradient has to pass through the Sinkhorn iterations.
  """
  output = linear.solve(geometry.Geometry(cost, epsilon=epsilon), masses, mixture,
                        max_iterations=MAX_ITERATIONS, threshold=MARGINAL_ERROR)
  return cast(sinkhorn.SinkhornOutput, output)


def topic_loss(params, network: TopicMixtureNetwork, vectors: jax.Array, indices: jax.Array, masses: jax.Array,
               epsilon: float) -> tuple[jax.Array, jax.Array]:
  """Returns (loss, transport cost), both averaged over reports; the loss is transport cost plus word loss.

  Args:
    params: `topics` [K, D], and `network`, the parameters of the network.
    network: predicts the topic mixtures.
    vectors: unit word vectors [W, D].
    indices: words of each report [B, U].
    masses: masses of these words [B, U].
    epsilon: entropic regularization.
  """
  topics = params["topics"] / jnp.linalg.norm(params["topics"], axis=1, keepdims=True)
  cosines = vectors @ topics.T                                                  # [W, K]
  rows = jnp.arange(len(indices))[:, None]
  reports = jnp.zeros((len(indices), len(vectors))).at[rows, indices].add(masses)         # [B, W]
  mixtures = cast(jax.Array, network.apply(params["network"], reports))         # [B, K]
  solve = functools.partial(solve_transport, epsilon=epsilon)
  transport_cost = jax.vmap(solve)(1 - cosines[indices], masses, mixtures).reg_ot_cost       # [B]
  assert transport_cost is not None
  reconstruction = mixtures @ jax.nn.softmax(cosines.T / TEMPERATURE, axis=1)   # [B, W]
  log_probs = jnp.log(jnp.take_along_axis(reconstruction, indices, axis=1) + 1e-9)      # [B, U]
  word_loss = -(masses * log_probs).sum(1)
  return (transport_cost + word_loss).mean(), transport_cost.mean()


def learn_topics(words: WordVectors, reports: TfIdfReports, num_topics: int, epsilon: float, steps: int,
                 batch_size: int, learning_rate: float, rng: np.random.Generator,
                 log: Callable[[str], None] = print) -> np.ndarray:
  """Returns unit topic vectors [K, D], learned from the reports with Adam.

  Args:
    words: the word vectors, which are not trained.
    reports: the tf-idf distribution of each report.
    num_topics: K.
    epsilon: entropic regularization; higher values make the words of a report share topics.
    steps: number of optimizer steps.
    batch_size: reports per step.
    learning_rate: initial learning rate, which decays to 0 with a cosine schedule.
    rng: samples initial topics, network parameters and batches; the same state gives the same topics.
    log: receives progress lines.
  """
  vectors = jnp.asarray(words.vectors)
  network = TopicMixtureNetwork(num_topics)
  centers = sample_initial_centers(words.vectors, reports.sum_by_word(len(vectors)), num_topics, rng)
  noise = rng.standard_normal(centers.shape) / np.sqrt(centers.shape[1])
  params = {
      "topics": jnp.asarray(centers + INITIAL_NOISE * noise, jnp.float32),   # with few words, centers may be equal
      "network": network.init(jax.random.key(rng.integers(2**31)), jnp.zeros((1, len(vectors)))),
  }
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
  opt_state = optimizer.init(params)

  @jax.jit
  def train_step(params, opt_state, indices, masses):
    grads, cost = jax.grad(topic_loss, has_aux=True)(
        params, network, vectors, indices, masses, epsilon)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, cost

  started = time.monotonic()
  for step in range(1, steps + 1):
    batch = rng.integers(len(reports.masses), size=batch_size)
    params, opt_state, cost = train_step(params, opt_state, reports.indices[batch], reports.masses[batch])
    if step % LOG_EVERY == 0 or step == steps:
      cost = float(cost)             # waits for the device, so that the elapsed time is right
      seconds_left = (time.monotonic() - started) / step * (steps - step)
      log(f"topics: step {step}/{steps}, transport cost {cost:.3f}, {seconds_left:.0f} s left")
  topics = np.asarray(params["topics"])
  return topics / np.linalg.norm(topics, axis=1, keepdims=True)
