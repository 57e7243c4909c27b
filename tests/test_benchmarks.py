"""Benchmarks run tiny, so that they cannot rot."""

from benchmarks import labels, memory, predict


def test_the_predict_benchmark_prints_its_table(capsys):
    predict.main(["--quick"])
    printed = capsys.readouterr().out
    assert "inkzarr, Zarr to Zarr" in printed
    assert "outside" in printed


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
