"""Files are replaced as a whole; links are followed; streams are written into."""

import os
import subprocess
import sys
import threading

import pytest

from mcsam_jax.atomic_io import atomic_write


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path):
  path = tmp_path / "new" / "file.txt"
  for content in ("first", b"second"):
    atomic_write(path, content)
  assert path.read_bytes() == b"second" and [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_link_is_followed(tmp_path):
  target, link, dangling = tmp_path / "target.txt", tmp_path / "link.txt", tmp_path / "dangling.txt"
  target.write_text("before")
  link.symlink_to(target)
  dangling.symlink_to(tmp_path / "missing.txt")
  atomic_write(link, "after")
  atomic_write(dangling, "new")
  assert link.is_symlink() and target.read_text() == "after"
  assert dangling.is_symlink() and (tmp_path / "missing.txt").read_text() == "new"


def test_a_pipe_is_written_into(tmp_path):
  pipe, received = tmp_path / "pipe", []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
  reader.start()
  atomic_write(pipe, "text")
  reader.join(10)
  assert received == [b"text"] and pipe.is_fifo()


@pytest.mark.parametrize("shell", ["{} /dev/stdout | cat", "{} /dev/stdout > {out}; cat {out}",
                                   "{} /dev/null; echo -n text", "{} /dev/fd/3 3> {out}; cat {out}", "{} >(cat)"])
def test_open_files_of_the_shell_are_written_into(tmp_path, shell):
  program = "import sys; from mcsam_jax.atomic_io import atomic_write; atomic_write(sys.argv[1], 'text')"
  command = shell.format(f'"{sys.executable}" -c "{program}"', out=tmp_path / "out")
  null = os.stat("/dev/null").st_rdev
  result = subprocess.run(["bash", "-c", f"{command}; sleep 0.2"], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
  assert result.stdout == "text" and os.stat("/dev/null").st_rdev == null


def test_text_that_has_no_encoding_is_escaped(tmp_path):
  atomic_write(tmp_path / "x.txt", "report of \udcff\u80ba.png")
  assert (tmp_path / "x.txt").read_bytes() == b"report of \\udcff\xe8\x82\xba.png"
