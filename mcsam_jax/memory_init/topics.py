"""Topics of the reports, learned by optimal transport.

A report is a distribution over words, and a mixture of topics is another one of the
same report; each topic is a vector among the word vectors. Moving the mass of a word to
a topic costs one minus their cosine. Topics and mixtures are learned together so that
the entropic transport between the two distributions of each report is cheap (the neural
Sinkhorn topic model of Zhao et al., ICLR 2021). Unlike clusters of words, topics gathered
in this way share what one report says: its words must be served by few topics at once.

Cheap transport alone would let all topics meet in the middle of the words, so each topic
must also give back the words of its reports, as in the same paper. There the costs are
mixed before the softmax over words; here every topic is a distribution over words of its
own, which keeps it readable.

Shapes: B reports, U words of one report (padded with mass 0), W words, K topics, D width.
"""

from collections.abc import Callable
import functools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ott.geometry import geometry
from ott.solvers import linear
from ott.solvers.linear import sinkhorn

from mcsam_jax.memory_init.kmeans import sample_initial_centers
from mcsam_jax.memory_init.word_vectors import WordMasses, WordVectors

HIDDEN_WIDTH = 128          # of the network that reads a report's mixture off its words
TYPICAL_WORDS = 10          # of a report
SMALLEST_SHARE = 1e-3       # of a report, spread over all topics
TEMPERATURE = 0.2           # of a topic's softmax over words; lower ones let topics settle on rare words
MAX_ITERATIONS = 50         # of Sinkhorn; it stops earlier where the marginals hold
MARGINAL_ERROR = 1e-2       # mass that may still be in the wrong place
FIRST_NOISE = 0.2           # length of the noise on first topics
SHOW_EVERY = 100            # steps


class TopicMixtureNetwork(nn.Module):
  """The network that reads topic mixtures off reports, so that a report never seen has one too."""
  num_topics: int

  @nn.compact
  def __call__(self, reports: jax.Array) -> jax.Array:
    """Returns the topic shares [B, K], all above 0, of tf-idf distributions [B, W]."""
    hidden = nn.relu(nn.Dense(HIDDEN_WIDTH)(reports * TYPICAL_WORDS))         # masses near one
    shares = nn.softmax(nn.Dense(self.num_topics)(hidden))
    return (1 - SMALLEST_SHARE) * shares + SMALLEST_SHARE / self.num_topics   # log(0) has no gradient


def solve_transport(cost: jax.Array, masses: jax.Array, mixture: jax.Array,
              epsilon: float) -> sinkhorn.SinkhornOutput:
  """Returns the entropic transport of `masses` [U] to `mixture` [K] at `cost` [U, K].

  Its `reg_ot_cost` is differentiable in all three: by the envelope theorem the
  iterations themselves need no derivative.
  """
  return linear.solve(geometry.Geometry(cost, epsilon=epsilon), masses, mixture,
                      max_iterations=MAX_ITERATIONS, threshold=MARGINAL_ERROR)


def topic_loss(params, network: TopicMixtureNetwork, vectors: jax.Array, indices: jax.Array, masses: jax.Array,
               epsilon: float) -> tuple[jax.Array, jax.Array]:
  """Returns transport cost plus word loss, and the transport cost alone, both means over reports.

  Args:
    params: `topics` [K, D] and the weights of the `network`.
    vectors: [W, D], of length one.
    indices, masses: [B, U], the words of each report.
  """
  topics = params["topics"] / jnp.linalg.norm(params["topics"], axis=1, keepdims=True)
  cosines = vectors @ topics.T                                                  # [W, K]
  rows = jnp.arange(len(indices))[:, None]
  reports = jnp.zeros((len(indices), len(vectors))).at[rows, indices].add(masses)         # [B, W]
  mixtures = network.apply(params["network"], reports)                          # [B, K]
  solve = functools.partial(solve_transport, epsilon=epsilon)
  transported = jax.vmap(solve)(1 - cosines[indices], masses, mixtures).reg_ot_cost       # [B]
  words = mixtures @ jax.nn.softmax(cosines.T / TEMPERATURE, axis=1)            # [B, W], as the topics say
  log_words = jnp.log(jnp.take_along_axis(words, indices, axis=1) + 1e-9)       # [B, U]
  word_loss = -(masses * log_words).sum(1)
  return (transported + word_loss).mean(), transported.mean()


def learn_topics(words: WordVectors, reports: WordMasses, num_topics: int, epsilon: float, steps: int,
                 batch_size: int, learning_rate: float, rng: np.random.Generator,
                 log: Callable[[str], None] = print) -> np.ndarray:
  """Returns unit topic vectors [K, D], learned on `reports` by Adam.

  Args:
    words: the word vectors, which stay as they are.
    reports: the tf-idf distribution of each report.
    epsilon: entropic regularisation; higher values make the words of a report share topics.
    rng: draws first topics, weights and batches; the same state gives the same topics.
    show: gets a line of progress now and then.
  """
  vectors = jnp.asarray(words.vectors)
  network = TopicMixtureNetwork(num_topics)
  first = sample_initial_centers(words.vectors, reports.sum_by_word(len(vectors)), num_topics, rng)
  noise = rng.standard_normal(first.shape) / np.sqrt(first.shape[1])
  params = {
      "topics": jnp.asarray(first + FIRST_NOISE * noise, jnp.float32),    # more topics than words must differ
      "network": network.init(jax.random.key(rng.integers(2**31)), jnp.zeros((1, len(vectors)))),
  }
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, indices, masses):
    gradients, cost = jax.grad(topic_loss, has_aux=True)(
        params, network, vectors, indices, masses, epsilon)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, cost

  started = time.monotonic()
  for number in range(1, steps + 1):
    batch = rng.integers(len(reports.masses), size=batch_size)
    params, state, cost = step(params, state, reports.indices[batch], reports.masses[batch])
    if number % SHOW_EVERY == 0 or number == steps:
      cost = float(cost)             # waits for the device: the clock is right
      left = (time.monotonic() - started) / number * (steps - number)
      log(f"topics: step {number}/{steps}, transport cost {cost:.3f}, {left:.0f} s left")
  topics = np.asarray(params["topics"])
  return topics / np.linalg.norm(topics, axis=1, keepdims=True)
