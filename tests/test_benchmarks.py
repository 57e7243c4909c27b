"""Benchmarks run tiny, so that they cannot rot."""

import re
import sys

import pytest
import torch

from benchmarks import (
    components,
    flatten,
    ingest,
    labels,
    learning,
    memory,
    predict,
    pyramid,
    real_flatten,
    real_labels,
    remote,
    report,
    scaling,
    storage,
    train,
)


def test_the_predict_benchmark_prints_its_table(capsys):
    predict.main(["--quick"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"^inkzarr, Zarr to Zarr +\d.* 1\.00 x as fast", printed, re.MULTILINE)) == 2
    assert "difference to monai: at most 1 of 255" in printed


def test_the_report_runs_modules_and_keeps_what_it_does_not_run(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n\n## labels: of an earlier run\n\nas they were\n")
    report.main(["--quick", "--only", "network", "--out", str(page)])
    written = page.read_text()
    assert "x eager" in written
    assert "`python -m benchmarks.network --quick`" in written
    assert f"torch {torch.__version__}" in written
    assert written.index("x eager") < written.index("as they were")


def test_the_scaling_benchmark_walks_over_a_sparse_scroll(capfd):
    scaling.main(["--quick", "--only", "scroll"])
    printed = capfd.readouterr().out
    for line in ("how often a window is run", "its first chunk written after", "peak beyond the plan"):
        assert line in printed


@pytest.mark.cluster
def test_the_scaling_benchmark_looks_at_clusters(capsys):
    scaling.main(["--quick", "--only", "scheduler"])
    scaling.main(["--quick", "--only", "workers"])
    printed = capsys.readouterr().out
    told = re.findall(r"(\d+) chunks written +([\d.]+) GB", printed)
    assert len(told) == 2
    assert all(int(chunks) > 0 and 0 < float(peak) < 1 for chunks, peak in told)
    assert "2 workers" in printed


def test_the_scaling_benchmark_measures_memory(capsys):
    scaling.main(["--quick", "--only", "memory"])
    printed = capsys.readouterr().out
    assert re.search(r"inkzarr +\d\.\d\d +\d\.\d\d$", printed, re.MULTILINE)
    assert re.search(r"inkzarr, runs a window +1\.00 +1\.00$", printed, re.MULTILINE)


def test_the_ingest_benchmark_prints_its_table(capsys):
    ingest.main(["--quick"])
    assert re.search(r"ours +clock .* x loop .* x floor", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["nnunet", "vesuvius"])
def test_peers_of_an_environment_of_their_own_run(peer, capsys):
    if report.interpreter() == sys.executable:
        pytest.skip(f"no environment with {peer}: `make bench` sets it up")
    predict.compare(48, 4, 1, levels=2, window=32)
    assert f"difference to {peer}: at most" in capsys.readouterr().out


def test_the_memory_benchmark_prints_its_table(capsys):
    memory.main(["--quick"])
    printed = capsys.readouterr().out
    assert "512x64x64" in printed
    assert printed.count("MB") == 8


def test_the_labels_benchmark_prints_its_tables(capsys):
    labels.main(["--quick"])
    printed = capsys.readouterr().out
    for line in ("Python double loop", "whole stage, Zarr written, ray", "Dask scan", "scipy cdist"):
        assert line in printed


@pytest.mark.slow
def test_the_real_labels_are_made(real_data, capfd):
    """Of tifxyz it checks by itself that the chunks that exist are those that are touched."""
    assert real_data
    real_labels.main(["--quick"])
    printed = capfd.readouterr().out
    assert printed.count("GB beyond the imports") == 2
    assert "that are touched" in printed


def test_the_pyramid_benchmark_prints_its_table(capsys):
    pyramid.main(["--quick"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"ours +clock .* x plain .* x dask", printed)) == 3
    assert "pyramid of a prediction" in printed
    assert "pyramid of a label group" in printed


def test_the_storage_benchmark_prints_its_tables(capsys):
    """That all ways read and write the same voxels it checks by itself."""
    storage.main(["--quick"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"^  ours +clock", printed, re.MULTILINE)) == 4


def test_the_flatten_benchmark_prints_its_table(capsys):
    flatten.main(["--quick"])
    printed = capsys.readouterr().out
    for line in (
        "Python loop",
        "scipy map_coordinates",
        "whole stage, PNG written",
        "4 needed, 4 read",
        "difference: 0",
    ):
        assert line in printed


@pytest.mark.slow
def test_a_real_surface_is_flattened_through_a_made_up_scroll(real_data, capsys):
    """Of tiles it checks by itself that they are scipy's."""
    assert real_data
    real_flatten.main(["--quick"])
    printed = capsys.readouterr().out
    assert "1152 x 1152 pixels" in printed
    assert "each 1.00 times" in printed


def test_the_components_benchmark_prints_its_tables(capsys):
    components.main(["--quick"])
    printed = capsys.readouterr().out
    for line in ("ours, all components and sums", "read, cc3d", "dask_image.ndmeasure.label", "peak:"):
        assert line in printed


def test_the_train_benchmark_prints_its_table(capsys):
    train.main(["--quick"])
    printed = capsys.readouterr().out
    for line in ("decodes a chunk needed", "loader, all augmentation", "network, 4 features, forward"):
        assert line in printed


def test_the_learning_benchmark_prints_its_tables(capsys):
    learning.main(["--quick"])
    printed = capsys.readouterr().out
    assert printed.count("pretrained") == 3
    assert "is reached with it" in printed


def test_the_remote_benchmark_prints_its_tables(capsys):
    """Without a cache at most 1.3 bytes are fetched for one needed; with one, none twice."""
    pytest.importorskip("s3fs")
    remote.main(["--quick"])
    printed = capsys.readouterr().out
    assert printed.count("zarr on fsspec") == 2
    told = re.findall(r"(predict|flatten), (?:http|s3), (without|with).*\(([\d.]+) times\)", printed)
    assert len(told) == 8
    assert all(float(times) <= (1.3 if how == "without" else 1.0) for _, how, times in told)
