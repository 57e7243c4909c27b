"""Threads do shares of jobs as they come to them, and all are through when the first error is raised."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.nn.threads import _threads, on_threads, share


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)


def test_an_error_is_raised_once_all_are_through(three_threads):
    begun, done = threading.Event(), []

    def work(n, count, job):
        if n == 0:
            assert begun.wait(20)
            raise OSError(job)
        begun.set()
        time.sleep(0.02 * n)
        done.append(n)

    with pytest.raises(OSError, match="full"):
        on_threads("test", work, [("full",)])
    assert sorted(done) == [1, 2, 3, 4, 5]


def test_shares_come_in_order(three_threads):
    found = on_threads("test", lambda n, count, job: (n, count, job), [("a",), ("b",)])
    assert found == [[(n, 6, "a"), (n, 6, "b")] for n in range(6)]


def test_of_a_slow_thread_others_take_the_shares(three_threads):
    done, rest = [], threading.Event()

    def work(n, count):
        if n == 0:
            assert rest.wait(20)
        done.append(n)
        if len(done) == count - 1:
            rest.set()

    on_threads("test", work, [()])
    assert sorted(done[:-1]) == [1, 2, 3, 4, 5]


def test_threads_that_are_busy_elsewhere_are_not_waited_for(three_threads):
    held, free = threading.Barrier(3), threading.Event()

    def hold():
        held.wait(20)
        free.wait(20)

    others = [_threads("test", 3).submit(hold) for _ in range(2)]
    held.wait(20)
    others += [_threads("test", 3).submit(free.wait, 20)]
    assert on_threads("test", lambda n, count: n, [()]) == [[n] for n in range(6)]
    assert not free.is_set()
    free.set()
    assert all(other.result() is not False for other in others)


@given(st.integers(1, 9), st.integers(0, 100))
def test_shares_are_the_whole(count, size):
    shares = [share(n, count, size) for n in range(count)]
    assert [plane for one in shares for plane in one] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
