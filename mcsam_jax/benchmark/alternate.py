"""Times functions alternately, each in a process of its own, so that what else the machine does affects all alike."""

from collections.abc import Callable, Iterator, Mapping
import multiprocessing
import time


def time_alternately(contestants: Mapping[str, tuple[Callable, tuple]], repeats: int) -> Iterator[dict[str, float]]:
  """Yields the seconds of one call of each contestant, `repeats` times.

  Args:
    contestants: {name: (make, arguments)}; make(*arguments) returns the function to time, after its first call.
  """
  context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
  for name, (make, arguments) in contestants.items():
    pipes[name], child_pipe = context.Pipe()
    processes.append(context.Process(target=serve_timings, args=(make, arguments, child_pipe), daemon=True))
    processes[-1].start()
    child_pipe.close()
    pipes[name].recv()                                  # waits, so that only one process at a time is busy
  for _ in range(repeats):
    seconds = {}
    for name, pipe in pipes.items():
      pipe.send(True)
      seconds[name] = pipe.recv()
    yield seconds
  for pipe, process in zip(pipes.values(), processes):
    pipe.send(False)
    process.join()


def serve_timings(make: Callable, arguments: tuple, pipe) -> None:
  """Sends "ready" after the first call, then the seconds of one call for each True received; stops at False."""
  function = make(*arguments)
  pipe.send("ready")
  while pipe.recv():
    start = time.perf_counter()
    function()
    pipe.send(time.perf_counter() - start)
