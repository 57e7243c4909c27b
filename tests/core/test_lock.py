"""Of two runs that write to one place the second is refused, and a dead lock is taken over; no clock is asked."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from inkzarr.core import lock
from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.job import RunOptions
from inkzarr.core.lock import Holder, locked, require_held
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import LOCK
from tests.core.blocks import job, voxels

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "WATCH_S", 0.02)
    monkeypatch.setattr(lock, "DEAD_S", 0.5)


HOLD = """
import sys, time
from inkzarr.core.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of ``out``."""
    command = [sys.executable, "-c", HOLD, f"{tmp_path}/out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def read(folder):
    return json.loads((folder / LOCK).read_text())


def put(folder, text):
    """Write a lock whole, as stores do."""
    (folder / "other").write_text(text)
    (folder / "other").replace(folder / LOCK)


def elsewhere(**more):
    """A lock that a run on another machine left, or holds."""
    return replace(Holder.new(), host="node7", pid=77, machine="another boot", **more)


def test_the_second_is_told_of_the_first_and_goes_on_where_that_died(other, tmp_path, capsys):
    before = (tmp_path / "out" / LOCK).read_bytes()
    told = (
        rf"out is being written by another run, process {other.pid} on .+, .+ s old: wait for it, or stop it"
    )
    with pytest.raises(InputError, match=told) as raised, locked(f"{tmp_path}/out"):
        pass
    assert raised.value.exit_code == 3
    with pytest.raises(InputError, match=f"process {other.pid}"):
        write_blocks(job(tmp_path / "out"), voxels, RunOptions(overwrite=True))
    assert (tmp_path / "out" / LOCK).read_bytes() == before
    other.kill()
    other.wait()
    assert read(tmp_path / "out")["pid"] == other.pid
    write_blocks(job(tmp_path / "out"), voxels, RunOptions())
    assert f"taken over from a run that is gone, process {other.pid} on" in capsys.readouterr().err
    assert not (tmp_path / "out" / LOCK).exists()


def test_the_number_of_a_dead_process_given_again(tmp_path):
    """Its pid lives, but is another process: born at another tick."""
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(Holder.new(), pid=1))))
    with locked(str(tmp_path)):
        assert read(tmp_path)["pid"] == os.getpid()


KILLED = """
import os, signal, sys
from inkzarr.core.lock import locked
link = os.link
def killed(source, target):
    if sys.argv[3] == "late":
        link(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
os.link = killed
with locked(sys.argv[1], name=sys.argv[2]):
    pass
"""


@pytest.mark.parametrize("name", [LOCK, ".letters[1].parquet.lock"])
@pytest.mark.parametrize("moment", ["early", "late"])
def test_half_a_lock_of_a_killed_run_goes(tmp_path, name, moment):
    others = {f".letters[1].parquet.{'a' * 31}.partial", f".letters1.parquet.{'a' * 32}.partial"}
    for other in others:
        (tmp_path / other).touch()
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, name, moment], check=False)
    assert len(list(tmp_path.iterdir())) == len(others) + 1 + (moment == "late")
    with locked(str(tmp_path), name=name):
        assert {path.name for path in tmp_path.iterdir()} == {*others, name}
    assert {path.name for path in tmp_path.iterdir()} == others


def test_a_lock_whose_half_another_run_swept_is_written_again(other, tmp_path, monkeypatch):
    def swept(source, _target):
        monkeypatch.undo()
        source.unlink()
        raise FileNotFoundError(source)

    monkeypatch.setattr(os, "link", swept)
    with pytest.raises(InputError, match=f"another run, process {other.pid}"), locked(f"{tmp_path}/out"):
        pass
    monkeypatch.setattr(os, "link", swept)
    with locked(f"{tmp_path}/free"):
        assert read(tmp_path / "free")["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_cannot_be_made_is_one_line():
    with (
        pytest.raises(InputError, match="cannot be written: choose a folder that can"),
        locked("/proc/no/out"),
    ):
        pass


def test_a_zombie_is_dead():
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}/stat").exists()
        assert lock._born(child.pid) == ""


@pytest.mark.parametrize("left", ["a lock", "", "{half of a"])
def test_a_lock_whose_beat_stands_still_is_taken_over(tmp_path, left, capsys):
    (tmp_path / LOCK).write_text(json.dumps(asdict(elsewhere())) if left == "a lock" else left)
    began = time.monotonic()
    with locked(str(tmp_path)):
        assert read(tmp_path)["pid"] == os.getpid()
    assert time.monotonic() - began >= 0.5
    assert "may be writing, watched for up to 0.5 s" in capsys.readouterr().err


def test_a_beat_from_elsewhere_is_a_living_run(tmp_path):
    alive = elsewhere(seconds=7200.0)

    def beat(number):
        put(tmp_path, json.dumps(asdict(replace(alive, beat=number))))

    beat(0)
    timer = threading.Timer(0.2, beat, [1])
    timer.start()
    with pytest.raises(InputError, match="process 77 on node7, 2 h old"), locked(str(tmp_path)):
        pass
    timer.join()


def test_a_clock_that_jumps_deceives_nobody(tmp_path, monkeypatch):
    """What the wall clock says plays no part, on either side."""
    with locked(str(tmp_path)):
        for jump in (-1e9, 1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: jump)
            refused = []
            thread = threading.Thread(target=try_it, args=(str(tmp_path), refused))
            thread.start()
            thread.join()
            assert len(refused) == 1, "another thread is another run"


def try_it(folder, refused):
    try:
        with locked(folder):
            pass
    except InputError as error:
        refused.append(error)


def test_inside_it_is_held_already(tmp_path):
    with locked(str(tmp_path)) as outer:
        with locked(f"{tmp_path}/") as inner:
            assert inner is outer
        assert (tmp_path / LOCK).exists()
        with locked(str(tmp_path), name=".ink.nrrd.lock") as beside:
            assert beside.out == f"{tmp_path}/ink.nrrd"
    assert list(tmp_path.iterdir()) == []


def test_it_beats(tmp_path):
    with locked(str(tmp_path)):
        until = time.monotonic() + 10
        while read(tmp_path)["beat"] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert read(tmp_path)["seconds"] > 0


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_nothing_is_left_however_the_run_ends(tmp_path, error):
    try:
        with locked(f"{tmp_path}/new/folder"):
            assert (tmp_path / "new" / "folder" / LOCK).exists()
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_lost_its_lock_records_nothing_more(tmp_path):
    """It stood still for long, and another run began: its own blocks must not enter that run's ledger."""
    out = tmp_path / "out"
    taken = json.dumps(asdict(elsewhere()))

    def steal(box):
        if not box.start.z:
            put(out, taken)
            time.sleep(0.3)
        return voxels(box)

    with pytest.raises(BlocksFailedError, match="was taken over by another run while this one stood still"):
        write_blocks(job(out), steal, RunOptions(workers=1))
    assert list((out / ".inkzarr").rglob("blocks*")) == []
    assert (out / LOCK).read_text() == taken, "the other run's lock stays"


def test_a_run_that_overwrites_keeps_its_lock(tmp_path):
    out = tmp_path / "out"
    write_blocks(job(out), voxels, RunOptions())
    seen = []

    def look(box):
        seen.append(read(out)["pid"])
        require_held()
        return voxels(box)

    write_blocks(job(out), look, RunOptions(overwrite=True))
    assert set(seen) == {os.getpid()}


def test_a_lock_makes_no_folder_a_volume(tmp_path):
    """A dead lock beside a photo: the photo is not overwritten."""
    (tmp_path / "beach.jpg").write_bytes(b"sand")
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(Holder.new(), pid=1))))
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"did not write|no Zarr volume"):
            write_blocks(job(tmp_path), voxels, RunOptions(overwrite=overwrite))
    assert (tmp_path / "beach.jpg").read_bytes() == b"sand"


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path):
    for _ in range(5):
        (tmp_path / LOCK).write_text(json.dumps(asdict(replace(Holder.new(), pid=1))))
        refused, got, enough = [], [], threading.Event()

        def start(refused=refused, got=got, enough=enough):
            try:
                with locked(str(tmp_path)) as mine:
                    got.append(mine)
                    enough.wait(10)
                    mine.require()
            except InputError as error:
                refused.append(error)
            finally:
                if len(refused) == 5:
                    enough.set()

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 5)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_an_interrupt_leaves_no_folder(tmp_path, monkeypatch, nth, late):
    """At each of its steps; the run that comes next finds nothing in its way."""
    honest, steps = lock.sync, []

    def interrupted(step):
        steps.append(None)
        if len(steps) != nth:
            return honest(step)
        if late:
            honest(step)
        else:
            step.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(lock, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt), locked(f"{tmp_path}/new/folder"):
        pass
    assert len(steps) >= nth
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_as_the_beat_begins_leaves_no_lock(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), locked(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nth", [1, 2], ids=["while it is made", "while it is given free"])
def test_an_interrupt_leaves_no_lock(tmp_path, monkeypatch, nth):
    honest, looks = lock.Lock._read, []

    def interrupted(self):
        if threading.current_thread() is threading.main_thread():
            looks.append(None)
            if len(looks) == nth:
                raise KeyboardInterrupt
        return honest(self)

    monkeypatch.setattr(lock.Lock, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt), locked(str(tmp_path)):
        pass
    assert len(looks) > nth
    assert not (tmp_path / LOCK).exists()
    with locked(str(tmp_path)):
        assert (tmp_path / LOCK).exists()
