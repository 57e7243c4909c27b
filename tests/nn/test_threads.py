"""Every thread does its share of each job, and all are through when the first error is raised."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.nn.threads import on_threads, share


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)


def test_an_error_is_raised_once_all_are_through(three_threads):
    done = []

    def work(n, count, job):
        if n == 0:
            raise OSError(job)
        time.sleep(0.05 * n)
        done.append(n)

    with pytest.raises(OSError, match="full"):
        on_threads("test", work, [("full",)])
    assert done == [1, 2]


def test_shares_come_in_order(three_threads):
    found = on_threads("test", lambda n, count, job: (n, count, job), [("a",), ("b",)])
    assert found == [[(n, 3, "a"), (n, 3, "b")] for n in range(3)]


@given(st.integers(1, 9), st.integers(0, 100))
def test_shares_are_the_whole(count, size):
    shares = [share(n, count, size) for n in range(count)]
    assert [plane for one in shares for plane in one] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
