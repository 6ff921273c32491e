"""When metrics are read and written, how speed is measured, profiles, and the report of a non-finite loss."""

import json
import types

import pytest

from input_pipeline.shuffle import record_order
from mcsam_jax import config as configs
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.training import profiler
from mcsam_jax.training.metrics_logger import compute_learning_rates, MAX_IN_FLIGHT, MetricsLogger
from mcsam_jax.training.nonfinite import NonFiniteError
from mcsam_jax.training.throughput import Throughput

NUM_RECORDS = 10


def load(**fields):
  fields = {"train.batch_size": 4, "train.num_steps": 60, "train.log_every": 5, "data.restricted": True} | {
      name.replace("__", "."): value for name, value in fields.items()}
  return configs.load_config("phantom", [f"--config.{field}={value}" for field, value in fields.items()])


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class FakeDevices:
  """Runs steps one after the other, each in `seconds`; reading a metric waits until its step is completed."""

  def __init__(self, clock=None, seconds=0.0):
    self.clock, self.seconds, self.idle_at, self.read = clock or Clock(), seconds, 0.0, []

  def dispatch(self, step, **metrics):
    self.idle_at = max(self.clock.now, self.idle_at) + self.seconds
    metrics = {"loss": 2.0, "token_loss": 1.5, "gradient_norm": 0.5} | metrics
    return {name: FakeScalar(self, step, name, value, self.idle_at) for name, value in metrics.items()}


class FakeScalar:
  def __init__(self, devices, step, name, value, ready_at):
    self.devices, self.step, self.name, self.value, self.ready_at = devices, step, name, value, ready_at
    self.is_copied = False

  def copy_to_host_async(self):
    self.is_copied = True

  def __float__(self):
    assert self.is_copied, "read before its copy to the host was started"
    self.devices.clock.now = max(self.devices.clock.now, self.ready_at)
    self.devices.read.append((self.step, self.name))
    return self.value


class FakeRun:
  """A MetricsLogger that watches fake devices."""

  def __init__(self, tmp_path, config=None, devices=None, **speed):
    self.config, self.devices, self.lines, self.written = config or load(), devices or FakeDevices(), [], {}
    throughput = Throughput(self.config.train.batch_size, 0, clock=self.devices.clock,
                            **({"num_chips": 1, "step_flops": 1.0, "peak_flops": None} | speed))
    writer = types.SimpleNamespace(write_scalars=self.written.__setitem__, close=lambda: None)
    self.logger = MetricsLogger(self.config, tmp_path, 0, NUM_RECORDS, writer, throughput, Watchdog(0),
                                self.lines.append)

  def run_steps(self, last, first=1, **metrics):
    for step in range(first, last + 1):
      self.logger.log_async(step, self.devices.dispatch(step, **metrics))


def test_metrics_are_read_while_later_steps_are_in_flight_and_none_is_skipped(tmp_path):
  run = FakeRun(tmp_path)
  run.run_steps(6)
  checked = lambda steps: [(step, name) for step in steps for name in ("loss", "gradient_norm")]
  assert run.devices.read == checked(range(1, 6 - MAX_IN_FLIGHT + 1)) and not run.written
  run.logger.flush()
  assert {step for step, _ in run.devices.read} == set(range(1, 7))
  assert [entry for entry in run.devices.read if entry[0] != 5] == checked([1, 2, 3, 4, 6])
  assert list(run.written) == [5]                       # the only logged step
  assert {"train/loss", "train/token_loss", "train/gradient_norm", "train/learning_rate"} == set(run.written[5])
  assert run.written[5]["train/token_loss"] == 1.5 and len(run.lines) == 1 and "step 5/60" in run.lines[0]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_non_finite_step_stops_the_run_and_its_records_are_written(tmp_path, name):
  run = FakeRun(tmp_path)
  run.run_steps(2)
  run.logger.log_async(3, run.devices.dispatch(3, **{name: float("nan")}))
  run.logger.log_async(4, run.devices.dispatch(4))
  with pytest.raises(NonFiniteError, match=f"step 3: {name} is nan") as error:
    run.logger.log_async(5, run.devices.dispatch(5))
  assert "\n" not in str(error.value) and str(tmp_path / "nonfinite-3.json") in str(error.value)
  report = json.loads((tmp_path / "nonfinite-3.json").read_text())
  records, epochs = record_order(run.config.seed, 2, 4, NUM_RECORDS)   # examples 8 to 11: across the end of epoch 0
  assert report["record"] == records.tolist() and report["epoch"] == epochs.tolist() == [0, 0, 1, 1]
  assert set(report) == {"step", "metrics", "split", "record", "epoch", "look_up"}
  assert report["metrics"][name] == "nan"


def test_flush_checks_the_last_step(tmp_path):
  run = FakeRun(tmp_path)
  run.run_steps(4)
  run.logger.flush()
  run.logger.log_async(5, run.devices.dispatch(5, loss=float("inf")))
  with pytest.raises(NonFiniteError, match="step 5: loss is inf"):
    run.logger.flush()
  assert not run.written                                # step 5 would have been logged


@pytest.mark.parametrize("step_seconds, batch_seconds, share", [(1.0, 0.0, 0.0), (1.0, 0.25, 0.25), (1.0, 4.0, 1.0)])
def test_waiting_for_input_is_not_confused_with_waiting_for_devices(tmp_path, step_seconds, batch_seconds, share):
  """Dispatching a step takes no time, as on an accelerator: only the limit of steps in flight makes the host wait."""
  clock = Clock()
  run = FakeRun(tmp_path, devices=FakeDevices(clock, step_seconds))

  def batches():
    for _ in range(60):
      clock.now += batch_seconds
      yield {}
  for step, _ in run.logger.iterate_steps(batches()):
    run.logger.log_async(step, run.devices.dispatch(step))
  run.logger.flush()
  assert run.written[55]["speed/input_wait_share"] == pytest.approx(share, abs=0.01)
  assert run.written[55]["speed/seconds_per_step"] == pytest.approx(max(step_seconds, batch_seconds))
  assert ("waiting for input" in run.lines[-2]) == (share > 0.1)


def test_utilization_by_hand_and_none_without_a_published_peak(tmp_path):
  """Four chips of 100 operations per second each, and 600 operations per step of 2 s: three quarters."""
  for peak, expected in ((100.0, 0.75), (None, None)):
    run = FakeRun(tmp_path, devices=FakeDevices(seconds=2.0), num_chips=4, step_flops=600.0, peak_flops=peak)
    run.run_steps(20)
    speed = run.written[15]
    assert speed.get("speed/mfu") == (expected and pytest.approx(expected))
    assert speed["speed/examples_per_second"] == pytest.approx(2)
    assert speed["speed/examples_per_second_per_chip"] == pytest.approx(0.5)
    assert ("mfu 75.0%" in run.lines[-1]) == bool(peak)


def test_the_first_step_is_excluded_from_the_speed(tmp_path):
  clock = Clock()
  run = FakeRun(tmp_path, load(train__log_every=1), FakeDevices(clock, 1.0))
  clock.now = 500.0
  run.run_steps(8)
  assert "ms/step" not in run.lines[0] and "speed/seconds_per_step" not in run.written[1]
  assert run.written[2]["speed/seconds_per_step"] == pytest.approx(1)


def test_learning_rates_are_those_of_the_logged_steps():
  config = load(optimizer__warmup_steps=10, optimizer__learning_rate=0.2, optimizer__encoder_learning_rate=0.1,
                encoder__frozen=False, optimizer__final_fraction=0.5, optimizer__schedule="linear")
  rates = compute_learning_rates(config, 5)
  assert list(rates) == list(range(10, 61, 5))
  assert rates[10] == {"learning_rate": pytest.approx(0.18), "learning_rate_encoder": pytest.approx(0.09)}
  assert rates[35]["learning_rate"] == pytest.approx(0.2 - 0.1 * 24 / 50)
  assert set(compute_learning_rates(load(), 0)[5]) == {"learning_rate"}


@pytest.fixture
def traces(monkeypatch):
  calls = []
  monkeypatch.setattr(profiler.jax.profiler, "start_trace", calls.append)
  monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: calls.append("stop"))
  return calls


def test_a_profile_holds_whole_steps_after_warm_up_and_is_excluded_from_the_speed(tmp_path, traces, monkeypatch):
  run = FakeRun(tmp_path, load(train__profile_steps=3), FakeDevices(seconds=1.0))
  clock = run.devices.clock

  def stop_slowly():
    clock.now += 100
    traces.append("stop")

  monkeypatch.setattr(profiler.jax.profiler, "stop_trace", stop_slowly)
  run.run_steps(profiler.WARMUP_STEPS - 1)
  assert not traces
  run.run_steps(profiler.WARMUP_STEPS, profiler.WARMUP_STEPS)
  assert traces == [str(tmp_path / "logs")] and {step for step, _ in run.devices.read} == set(range(1, 11))
  run.run_steps(13, 11)
  assert traces[1:] == ["stop"] and (13, "loss") in run.devices.read
  run.run_steps(40, 14)
  assert len(traces) == 2 and any("profile" in line and "11 to 13" in line for line in run.lines)
  assert run.written[15]["speed/seconds_per_step"] == run.written[35]["speed/seconds_per_step"] == pytest.approx(1)


def test_a_file_in_the_workdir_requests_a_profile(tmp_path, traces):
  run = FakeRun(tmp_path)
  run.run_steps(12)
  (tmp_path / "profile").write_text("2\n")
  run.run_steps(14, 13)
  assert not traces                                     # the file is read at logged steps only
  run.run_steps(15, 15)
  assert len(traces) == 1 and not (tmp_path / "profile").exists()
  run.logger.flush()                                    # before an evaluation, which is not part of a step
  assert traces[1:] == ["stop"]
  (tmp_path / "profile").write_text("all")
  run.run_steps(20, 16)
  assert len(traces) == 2 and str(tmp_path / "profile") in run.lines[-1] and "'all'" in run.lines[-1]


def test_profiles_are_copied_with_their_folders(tmp_path):
  (tmp_path / "a" / "plugins").mkdir(parents=True)
  (tmp_path / "a" / "plugins" / "host.xplane.pb").write_bytes(b"trace")
  profiler.copy_files(tmp_path / "a", profiler.epath.Path(tmp_path / "b"))
  assert (tmp_path / "b" / "plugins" / "host.xplane.pb").read_bytes() == b"trace"
