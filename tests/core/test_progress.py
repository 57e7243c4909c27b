"""Progress is told once, to whoever listens, and reaches its total."""

import io
import json
import re
import sys
import threading

import numpy as np
import pytest

from inkzarr.core import progress
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.progress import Progress, duration, listening, size, tick
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec

pytestmark = pytest.mark.usefixtures("small_chunks")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def job(out, **changes):
    spec = VolumeSpec(Zyx(16, 16, 16), np.dtype("uint8"))
    return Job("test", str(out), spec, Zyx.of(8), {}, workers=2, **changes)


def test_quiet_lines_in_a_log(capsys):
    with Progress("test", 10, unit="block") as shown:
        shown.advance(4)
        shown.say("dashboard: none")
    out, err = capsys.readouterr()
    assert out == "", "data alone goes to stdout"
    assert err.splitlines()[0] == "dashboard: none"
    assert re.fullmatch(r"test: 40 %, 4 of 10 blocks, .* s, .* left", err.splitlines()[1])


def test_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with Progress("test", 3, unit="block") as shown:
        for _ in range(3):
            shown.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("test: 100 %, 3 of 3 blocks")
    assert "left" not in lines[-1]


def test_what_was_done_before_is_no_work_of_this_run(capsys):
    with Progress("test", 100, unit="step", before=90, json_lines=True) as shown:
        shown._began -= 10
        shown.advance(5)
    state = json.loads(capsys.readouterr().err)
    assert (state["done"], state["total"]) == (95, 100)
    assert state["seconds_left"] == pytest.approx(10, abs=0.2), "five steps took ten seconds"


def test_a_run_that_ends_by_time_expects_fewer_steps(capsys):
    with Progress("test", 200_000, unit="step", json_lines=True) as shown:
        shown._began -= 10
        shown.advance(50)
        shown.expect(100)
    state = json.loads(capsys.readouterr().err)
    assert (state["done"], state["total"]) == (50, 100)
    assert state["seconds_left"] == pytest.approx(10, abs=0.2)


def test_the_silent_ones_of_many_processes_show_nothing(capsys):
    with Progress("test", 1, unit="step", silent=True) as shown:
        shown.say("resumed")
        shown.advance(1)
    assert capsys.readouterr().err == ""


def test_json_lines(capsys):
    with Progress("test", 8, unit="window", json_lines=True) as shown:
        shown.say("block 1 failed: disk\nfull")
        shown.advance(2)
    first, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {"stage": "test", "message": "block 1 failed: disk\nfull"}
    assert (last["stage"], last["done"], last["total"], last["unit"]) == ("test", 2, 8, "window")
    assert last["seconds_left"] >= 0


def test_a_few_words_beside_it(capsys, monkeypatch):
    for json_lines in (False, True):
        with Progress("train", 4, unit="step", json_lines=json_lines) as shown:
            shown.advance(4)
            shown.note("loss 0.5")
    text, line = capsys.readouterr().err.splitlines()
    assert text.endswith("; loss 0.5")
    assert json.loads(line)["note"] == "loss 0.5"
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("train", 4, unit="step") as shown:
        shown.note("loss 0.25")
    assert "train, loss 0.25" in terminal.getvalue()


def test_nothing_to_do(capsys):
    with Progress("test", 0, unit="block"):
        pass
    assert "test: 100 %, 0 of 0 blocks" in capsys.readouterr().err


def test_a_bar_in_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("test", 500, unit="block") as shown:
        shown.expect(5)
        shown.advance(5)
        shown.say("[bold]said as it is[/bold]")
    written = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "5/5" in written
    assert "blocks" in written
    assert "[bold]said as it is[/bold]" in written


def test_a_bar_of_a_run_that_ends_by_time_has_an_eta_and_an_end(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("test", 10_000, unit="step") as shown:
        (task,) = shown._bar._rich.tasks
        for step in range(1, 8):
            shown.advance(1)
            shown.expect(100 + step % 3)
        assert task.time_remaining is not None
        shown.advance(1)
        shown.expect(7)
        shown.expect(8)
    assert (task.completed, task.total) == (8, 8)


def test_ticks_reach_their_own_thread_alone():
    heard = {}

    def work(name):
        heard[name] = []
        with listening(heard[name].append):
            for _ in range(100):
                tick(name)
        tick(1000)

    threads = [threading.Thread(target=work, args=(name,)) for name in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {1: [1] * 100, 2: [2] * 100}


@pytest.mark.parametrize("fails", [0, 2])
def test_ticks_and_retries_add_up_to_the_total(tmp_path, capsys, fails):
    """Work told of in a try that failed is not counted twice."""
    tries = {}

    def block(box):
        tries[box] = tries.get(box, 0) + 1
        tick(3)
        if tries[box] <= fails:
            msg = "flaky"
            raise OSError(msg)
        return np.ones(box.shape, "uint8")

    write_blocks(
        job(tmp_path / "out.zarr", work=lambda _: 5, unit="window"), block, RunOptions(json_logs=True)
    )
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["done"], last["total"]) == (40, 40)


def test_a_block_that_is_tried_again_never_counts_past_the_whole(capsys):
    with Progress("predict", 8, unit="window") as progress:
        progress.advance(10)
    assert "100 %, 8 of 8 windows" in capsys.readouterr().err


def test_the_end_is_told_for_what_is_left(tmp_path, capsys):
    """A run that goes on counts its own blocks, or its ETA would lie."""

    def failing(box):
        if box.start.z:
            msg = "told to fail"
            raise ValueError(msg)
        return np.ones(box.shape, "uint8")

    with pytest.raises(Exception, match="4 of 8 blocks failed"):
        write_blocks(job(tmp_path / "out.zarr"), failing, RunOptions())
    capsys.readouterr()
    write_blocks(job(tmp_path / "out.zarr"), lambda box: np.ones(box.shape, "uint8"), RunOptions())
    assert "2048 of 2048 voxels" in capsys.readouterr().err


def test_as_people_say_it():
    assert [duration(t) for t in (0.0123, 59, 90, 5400, 129600)] == [
        "0.0123 s",
        "59 s",
        "1.5 min",
        "1.5 h",
        "1.5 d",
    ]
    assert [size(n) for n in (0, 999, 1000, 10**9, 10**12, 10**15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 GB",
        "1 TB",
        "1e+03 TB",
    ]


def test_a_widget_in_a_notebook(monkeypatch, capsys):
    pytest.importorskip("ipywidgets")
    tqdm = pytest.importorskip("tqdm.notebook")
    made = []

    class Seen(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**options, display=False)
            made.append(self)

    monkeypatch.setattr(progress, "in_jupyter", lambda: True)
    monkeypatch.setattr(tqdm, "tqdm", Seen)
    with Progress("test", 500, unit="block") as shown:
        shown.expect(5)
        shown.advance(3)
        shown.say("dashboard: none")
        shown.advance(-1)
        shown.note("loss 0.5")
        shown.advance(3)
    assert (made[0].n, made[0].total, made[0].desc) == (5, 5, "test, loss 0.5: ")
    assert made[0].container.children[1].max == 5
    assert made[0].disable, "closed"
    assert "dashboard: none" in capsys.readouterr().err


def test_lines_in_a_notebook_without_widgets(monkeypatch, capsys):
    monkeypatch.setattr(progress, "in_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", None)
    with Progress("test", 5, unit="block") as shown:
        shown.advance(5)
    assert "test: 100 %, 5 of 5 blocks" in capsys.readouterr().err
