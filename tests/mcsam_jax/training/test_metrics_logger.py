"""What is read of a step and when, how fast a run says it is, and what is left of one that lost its numbers."""

import json
import types

import pytest

from input_pipeline.shuffle import record_order
from mcsam_jax import config as configs
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import UserError
from mcsam_jax.training import profiler
from mcsam_jax.training.metrics_logger import IN_FLIGHT, learning_rates, Watch
from mcsam_jax.training.throughput import Progress

RECORDS = 10


def load(**fields):
  fields = {"train.batch_size": 4, "train.num_steps": 60, "train.log_every": 5, "data.restricted": True} | {
      name.replace("__", "."): value for name, value in fields.items()}
  return configs.load_config("phantom", [f"--config.{field}={value}" for field, value in fields.items()])


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class Devices:
  """Does steps one after the other, each in `seconds`; a figure that is read waits until its step is done."""

  def __init__(self, clock=None, seconds=0.0):
    self.clock, self.seconds, self.free, self.read = clock or Clock(), seconds, 0.0, []

  def step(self, step, **figures):
    self.free = max(self.clock.now, self.free) + self.seconds
    figures = {"loss": 2.0, "token_loss": 1.5, "gradient_norm": 0.5} | figures
    return {name: Figure(self, step, name, value, self.free) for name, value in figures.items()}


class Figure:
  def __init__(self, devices, step, name, value, done):
    self.devices, self.step, self.name, self.value, self.done, self.sent = devices, step, name, value, done, False

  def copy_to_host_async(self):
    self.sent = True

  def __float__(self):
    assert self.sent, "not on its way when it was asked for"
    self.devices.clock.now = max(self.devices.clock.now, self.done)
    self.devices.read.append((self.step, self.name))
    return self.value


class Run:
  """A Watch over devices of the test."""

  def __init__(self, tmp_path, config=None, devices=None, **speed):
    self.config, self.devices, self.lines, self.written = config or load(), devices or Devices(), [], {}
    self.progress = Progress(self.config, 0, self.lines.append, clock=self.devices.clock,
                             **({"num_chips": 1, "step_flops": 1.0, "peak_flops": None} | speed))
    writer = types.SimpleNamespace(write_scalars=self.written.__setitem__, close=lambda: None)
    self.watch = Watch(self.config, tmp_path, 0, RECORDS, writer, self.progress, Watchdog(0))

  def go(self, last, first=1, **figures):
    for step in range(first, last + 1):
      self.watch.follow(step, self.devices.step(step, **figures))


def test_a_step_is_looked_at_when_others_are_under_way_and_none_is_forgotten(tmp_path):
  run = Run(tmp_path)
  run.go(6)
  checked = lambda steps: [(step, name) for step in steps for name in ("loss", "gradient_norm")]
  assert run.devices.read == checked(range(1, 6 - IN_FLIGHT + 1)) and not run.written
  run.watch.settle()
  assert {step for step, _ in run.devices.read} == set(range(1, 7))
  assert [entry for entry in run.devices.read if entry[0] != 5] == checked([1, 2, 3, 4, 6])
  assert list(run.written) == [5]                       # in between, logged; whole
  assert {"train/loss", "train/token_loss", "train/gradient_norm", "train/learning_rate"} == set(run.written[5])
  assert run.written[5]["train/token_loss"] == 1.5 and len(run.lines) == 1 and "step 5/60" in run.lines[0]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_step_without_a_number_stops_the_run_and_names_its_records(tmp_path, name):
  run = Run(tmp_path)
  run.go(2)
  run.watch.follow(3, run.devices.step(3, **{name: float("nan")}))
  run.watch.follow(4, run.devices.step(4))
  with pytest.raises(UserError, match=f"step 3: {name} is nan") as stopped:
    run.watch.follow(5, run.devices.step(5))
  assert "\n" not in str(stopped.value) and "nonfinite-3.json" in str(stopped.value)
  kept = json.loads((tmp_path / "nonfinite-3.json").read_text())
  records, epochs = record_order(run.config.seed, 2, 4, RECORDS)       # slots 8 to 11: across the end of epoch 0
  assert kept["record"] == records.tolist() and kept["epoch"] == epochs.tolist() == [0, 0, 1, 1]
  assert set(kept) == {"step", "metrics", "split", "record", "epoch", "look_up"} and kept["metrics"][name] == "nan"


def test_before_a_state_is_saved_its_last_step_is_known_to_be_good(tmp_path):
  run = Run(tmp_path)
  run.go(4)
  run.watch.settle()
  run.watch.follow(5, run.devices.step(5, loss=float("inf")))
  with pytest.raises(UserError, match="step 5: loss is inf"):
    run.watch.settle()
  assert not run.written                                # step 5 would have been logged


@pytest.mark.parametrize("step_seconds, batch_seconds, share", [(1.0, 0.0, 0.0), (1.0, 0.25, 0.25), (1.0, 4.0, 1.0)])
def test_waiting_for_input_is_told_from_waiting_for_the_devices(tmp_path, step_seconds, batch_seconds, share):
  """Calls of a step take no time here, as on an accelerator: only the limit of steps in flight makes this host wait."""
  clock = Clock()
  run = Run(tmp_path, devices=Devices(clock, step_seconds))

  def batches():
    for _ in range(60):
      clock.now += batch_seconds
      yield {}
  for step, _ in run.watch.steps(batches()):
    run.watch.follow(step, run.devices.step(step))
  run.watch.settle()
  assert run.written[55]["speed/input_wait_share"] == pytest.approx(share, abs=0.01)
  assert run.written[55]["speed/seconds_per_step"] == pytest.approx(max(step_seconds, batch_seconds))
  assert ("waiting for input" in run.lines[-2]) == (share > 0.1)


def test_utilisation_by_hand_and_none_where_no_peak_is_published(tmp_path):
  """Four chips of 100 operations a second, 600 a step of 2 s: three quarters."""
  for peak, expected in ((100.0, 0.75), (None, None)):
    run = Run(tmp_path, devices=Devices(seconds=2.0), num_chips=4, step_flops=600.0, peak_flops=peak)
    run.go(20)
    figures = run.written[15]
    assert figures.get("speed/mfu") == (expected and pytest.approx(expected))
    assert figures["speed/examples_per_second"] == pytest.approx(2)
    assert figures["speed/examples_per_second_per_chip"] == pytest.approx(0.5)
    assert ("mfu 75.0%" in run.lines[-1]) == bool(peak)


def test_the_first_step_is_compiled_and_tells_nothing_of_the_speed(tmp_path):
  clock = Clock()
  run = Run(tmp_path, load(train__log_every=1), Devices(clock, 1.0))
  clock.now = 500.0
  run.go(8)
  assert "ms/step" not in run.lines[0] and "speed/seconds_per_step" not in run.written[1]
  assert run.written[2]["speed/seconds_per_step"] == pytest.approx(1)


def test_learning_rates_are_those_of_the_steps_that_are_logged():
  config = load(optimizer__warmup_steps=10, optimizer__learning_rate=0.2, optimizer__encoder_learning_rate=0.1,
                encoder__frozen=False, optimizer__final_fraction=0.5, optimizer__schedule="linear")
  rates = learning_rates(config, 5)
  assert list(rates) == list(range(10, 61, 5))
  assert rates[10] == {"learning_rate": pytest.approx(0.18), "learning_rate_encoder": pytest.approx(0.09)}
  assert rates[35]["learning_rate"] == pytest.approx(0.2 - 0.1 * 24 / 50)
  assert set(learning_rates(load(), 0)[5]) == {"learning_rate"}


@pytest.fixture
def traces(monkeypatch):
  calls = []
  monkeypatch.setattr(profiler.jax.profiler, "start_trace", calls.append)
  monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: calls.append("stop"))
  return calls


def test_a_profile_holds_whole_steps_of_a_warm_run_and_leaves_the_speed_alone(tmp_path, traces, monkeypatch):
  run = Run(tmp_path, load(train__profile_steps=3), Devices(seconds=1.0))
  clock = run.devices.clock

  def written_slowly():
    clock.now += 100
    traces.append("stop")

  monkeypatch.setattr(profiler.jax.profiler, "stop_trace", written_slowly)
  run.go(profiler.WARM_UP - 1)
  assert not traces
  run.go(profiler.WARM_UP, profiler.WARM_UP)
  assert traces == [str(tmp_path / "logs")] and {step for step, _ in run.devices.read} == set(range(1, 11))
  run.go(13, 11)
  assert traces[1:] == ["stop"] and (13, "loss") in run.devices.read
  run.go(40, 14)
  assert len(traces) == 2 and "steps from 11 to 13" in "".join(run.lines)
  assert run.written[15]["speed/seconds_per_step"] == run.written[35]["speed/seconds_per_step"] == pytest.approx(1)


def test_a_file_asks_a_running_job_for_a_profile(tmp_path, traces):
  run = Run(tmp_path)
  run.go(12)
  (tmp_path / "profile").write_text("2\n")
  run.go(14, 13)
  assert not traces                                     # it is looked for where steps are logged
  run.go(15, 15)
  assert len(traces) == 1 and not (tmp_path / "profile").exists()
  run.watch.settle()                                    # an evaluation follows: it would drown the step
  assert traces[1:] == ["stop"]
  (tmp_path / "profile").write_text("all")
  run.go(20, 16)
  assert len(traces) == 2 and "a number of steps" in run.lines[-1]


def test_profiles_reach_a_folder_that_the_profiler_cant_write_to(tmp_path):
  (tmp_path / "a" / "plugins").mkdir(parents=True)
  (tmp_path / "a" / "plugins" / "host.xplane.pb").write_bytes(b"trace")
  profiler.copy_files(tmp_path / "a", profiler.epath.Path(tmp_path / "b"))
  assert (tmp_path / "b" / "plugins" / "host.xplane.pb").read_bytes() == b"trace"
