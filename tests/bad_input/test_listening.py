"""What inkzarr starts is reached from this machine alone."""

from pathlib import Path

import psutil
import pytest

import inkzarr


def listening(processes):
    """Addresses that processes listen on."""
    return {
        one.laddr.ip
        for p in processes
        for one in p.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")
def test_a_cluster_listens_on_loopback_alone():
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with inkzarr.cluster(workers=1) as running:
        here = psutil.Process()
        made = [process for process in here.children(recursive=True) if process.pid not in before]
        assert listening([here, *made]) == {"127.0.0.1"}
        assert running.dashboard.startswith("http://127.0.0.1:")


def test_the_viewer_is_told_to():
    text = Path(inkzarr.__file__).with_name("view.py").read_text()
    assert 'HOST = "127.0.0.1"' in text
    assert "set_server_bind_address(HOST, 0)" in text
