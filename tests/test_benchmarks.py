"""Benchmarks run tiny, so that they cannot rot."""

from benchmarks import predict


def test_the_predict_benchmark_prints_its_table(capsys):
    predict.main(["--quick"])
    printed = capsys.readouterr().out
    assert "inkzarr, Zarr to Zarr" in printed
    assert "outside" in printed
