"""What appears only once it is whole: files and folders, and what is left where something fails."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inkzarr.core.errors import InputError
from inkzarr.core.whole import whole

WRITE = """
import sys
from pathlib import Path
from inkzarr.core.whole import whole
with whole(Path(sys.argv[1])) as partial:
    partial.write_text("other")
"""


def written(partial, *names):
    if not names:
        partial.write_text("new")
        return
    partial.mkdir()
    for name in names:
        (partial / name).write_text("new")


def test_a_file_and_a_folder_replace_what_was_there(tmp_path):
    for _ in range(2):
        with whole(tmp_path / "a") as partial:
            written(partial)
        assert (tmp_path / "a").read_text() == "new"
    for name in ("1", "2"):
        with whole(tmp_path / "b") as partial:
            written(partial, name)
        assert [path.name for path in (tmp_path / "b").iterdir()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def fail():
        with whole(tmp_path / "a") as partial:
            written(partial)
            raise error

    with pytest.raises(error):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_run_left_goes(tmp_path):
    (tmp_path / ".a.partial").mkdir()
    with whole(tmp_path / "a") as partial:
        written(partial)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_takes_nothing_is_one_line(tmp_path):
    def write(name, target=None):
        with whole(tmp_path / name) as partial:
            if target:
                partial.symlink_to(target)
            written(partial)

    with pytest.raises(InputError, match=r"no/a cannot be written: .* is no folder: create it"):
        write("no/a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(InputError, match="folder cannot be written"):
        write("folder")
    with pytest.raises(InputError, match="No space left on device"):
        write("full", "/dev/full")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "mine"]


def test_of_two_that_write_one_file_the_second_is_refused(tmp_path):
    with whole(tmp_path / "a") as partial:
        written(partial)
        done = subprocess.run(
            [sys.executable, "-c", WRITE, tmp_path / "a"], capture_output=True, text=True, check=False
        )
    assert f"a is being written by another run, process {os.getpid()} on " in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_is_put_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    honest = Path.replace

    def ended(self, target):
        if self.name == ".a.partial":
            raise error
        return honest(self, target)

    def replaced():
        with whole(tmp_path / "a") as partial:
            written(partial, "new")

    monkeypatch.setattr(Path, "replace", ended)
    with pytest.raises((InputError, KeyboardInterrupt)):
        replaced()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"a", "a/old"}


def test_what_a_run_moved_away_before_it_was_killed_is_there_again(tmp_path):
    (tmp_path / ".a.before").mkdir()
    (tmp_path / ".a.before" / "old").write_text("old")

    def fail():
        with whole(tmp_path / "a"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a" / "old").read_text() == "old"


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "there")
    for name in ("1", "2"):
        with whole(tmp_path / "a") as partial:
            written(partial, name)
        assert [path.name for path in (tmp_path / "there").iterdir()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "there"}


@pytest.mark.parametrize("name", ["n" * 300, "loop"])
def test_a_name_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    with (
        pytest.raises(InputError) if len(name) > 4 else contextlib.nullcontext(),
        whole(tmp_path / name) as partial,
    ):
        partial.write_text("all")
