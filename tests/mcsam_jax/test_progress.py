"""Progress lines: how often they come, their rate and their time left, by a clock that the test sets."""

from mcsam_jax.progress import ProgressLog


class Clock:
  """Time in seconds, advanced by hand."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self) -> float:
    return self.now


def make_progress(**arguments):
  """Returns a ProgressLog of a task with 100 units, its lines and its clock."""
  lines, clock = [], Clock()
  arguments = {"label": "task", "total": 100, "unit": "files"} | arguments
  return ProgressLog(lines.append, **arguments, clock=clock), lines, clock


def run_until_done(progress, clock, seconds_per_unit, total=100):
  for done in range(1, total + 1):
    clock.now += seconds_per_unit
    progress.update(done)


def test_lines_show_count_rate_and_time_left():
  progress, lines, clock = make_progress()
  clock.now += 60
  progress.update(20)
  assert lines == ["task: 20/100 files  0.3 files/s  4.0 min left"]


def test_rate_may_count_something_else_than_the_units():
  progress, lines, clock = make_progress(rate_unit="images")
  clock.now += 20
  progress.update(50, work=160)
  assert lines == ["task: 50/100 files  8.0 images/s  0.3 min left"]


def test_units_from_an_earlier_run_change_neither_rate_nor_time_left():
  progress, lines, clock = make_progress(done=80, label="")
  clock.now += 60
  progress.update(90)
  assert lines == ["90/100 files  0.2 files/s  1.0 min left"]


def test_at_most_one_line_in_ten_seconds_and_one_at_the_end():
  progress, lines, clock = make_progress()
  run_until_done(progress, clock, seconds_per_unit=1)
  assert [line.split()[1] for line in lines] == [f"{done}/100" for done in (*range(11, 100, 11), 100)]


def test_a_short_task_logs_its_end_unless_told_otherwise():
  for log_last, expected in ((True, 1), (False, 0)):
    progress, lines, clock = make_progress(log_last=log_last)
    run_until_done(progress, clock, seconds_per_unit=0.05)
    assert len(lines) == expected


def test_a_clock_that_stands_still_divides_by_nothing():
  progress, lines, _ = make_progress()
  progress.update(0)
  progress.update(100)
  assert lines == ["task: 100/100 files"]
