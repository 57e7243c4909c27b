"""Reading over a slow line, beside what people use, in one run.

    python -m benchmarks.remote             # minutes
    python -m benchmarks.remote --quick     # seconds, as the tests run it

A volume of raw chunks of 128^3 lies on a web server and in a bucket of moto's S3 server; a line in a process
of its own adds 30 ms to each request, and remembers the servers' answers, so that they cost nothing. Chunks a
second of a whole region, and the processor's milliseconds that a chunk costs the reader: ours as stages read,
ours as a lazy volume (with Dask's threads, and with 32), zarr on fsspec, and obstore and tensorstore where
they are installed. Then predict and flatten over both: bytes fetched for each byte needed, without a cache
and with one.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks.report import is_quick, machine
from inkzarr.core.geometry import Box
from inkzarr.core.store import open_stored, open_volume
from inkzarr.flatten import FlattenSettings, flatten
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, predict_volume
from tests.core.line import start_moto
from tests.core.web import Web

DELAY_S = 0.03


@contextmanager
def slow_line(upstream):
    """URL of a line to a server, in a process of its own."""
    command = [sys.executable, "-m", "tests.core.line", upstream, "--delay", str(DELAY_S)]
    line = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield line.stdout.readline().strip()
    finally:
        line.communicate()


def read_obstore(url, options):
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    if url.startswith("s3"):
        more = {
            "endpoint": options["client_kwargs"]["endpoint_url"],
            "skip_signature": True,
            "region": "us-east-1",
        }
        store = from_url(url, config=more, client_options={"allow_http": True})
    else:
        store = from_url(url, client_options={"allow_http": True})
    return zarr.open_array(ObjectStore(store, read_only=True), mode="r", zarr_format=2)[:]


def read_tensorstore(url, options):
    import tensorstore

    if url.startswith("s3"):
        bucket, path = url.removeprefix("s3://").split("/", 1)
        kv = {"driver": "s3", "bucket": bucket, "path": f"{path}/", "aws_region": "us-east-1"}
        kv |= {"endpoint": options["client_kwargs"]["endpoint_url"], "aws_credentials": {"type": "anonymous"}}
    else:
        kv = f"{url}/"
    return tensorstore.open({"driver": "zarr", "kvstore": kv}).result().read().result()


def read_stage(url, options):
    stored = open_stored(url, storage_options=options)
    return stored.read(Box.whole(stored.shape))


READERS = {
    "ours, as stages read": read_stage,
    "ours, lazy, 32 threads": lambda url, o: open_volume(url, storage_options=o).data.compute(num_workers=32),
    "ours, lazy, Dask's threads": lambda url, o: open_volume(url, storage_options=o).data.compute(),
    "zarr on fsspec": lambda url, o: zarr.open_array(url, mode="r", storage_options=o)[:],
}
READERS |= {
    name: reader
    for name, reader in (("obstore", read_obstore), ("tensorstore", read_tensorstore))
    if importlib.util.find_spec(name)
}


def bench_reading(places, voxels, repeat):
    """Chunks a second, the best of some tries; the first of all fills the line's memory."""
    chunks = voxels.size // min(voxels.size, 128**3)
    for kind, (url, options) in places.items():
        print(f"\n{kind}, {chunks} chunks, {1e3 * DELAY_S:.0f} ms")
        for name, reader in READERS.items():
            rates, cpu = [], []
            for _ in range(repeat):
                began, busy = time.perf_counter(), time.process_time()
                found = reader(url, options)
                rates.append(chunks / (time.perf_counter() - began))
                cpu.append(1e3 * (time.process_time() - busy) / chunks)
            assert np.array_equal(found, voxels)
            print(f"  {name:<28} {max(rates):7.1f} chunks/s   {min(cpu):5.1f} ms of processor a chunk")


def bench_traffic(places, folder):
    """Bytes fetched for each byte needed."""
    torch.manual_seed(0)
    save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))
    for kind, (url, options) in places.items():
        for cache in (None, str(folder / f"cache-{kind}")):
            told = options | ({"cache": cache} if cache else {})
            name = "with --cache" if cache else "without cache"
            settings = PredictSettings(window=32, overlap=0.5, block=64)
            out = folder / f"{kind}-{bool(cache)}"
            report = predict_volume(url, f"{folder}/unet.pt", f"{out}.zarr", settings, storage_options=told)
            print(f"  predict, {kind}, {name}: {report.traffic}")
            told |= {"cache": f"{cache}-flat"} if cache else {}
            sheet = flatten(url, "flat:20", f"{out}.png", FlattenSettings(depth=8), storage_options=told)
            print(f"  flatten, {kind}, {name}: {sheet.run.traffic}")


def main(arguments=None):
    quick = is_quick(__doc__, arguments)
    import s3fs

    print(machine())
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        served = folder / "served"
        edge, small = (128, 96) if quick else (768, 256)
        voxels = np.random.default_rng(0).integers(1, 255, (edge,) * 3, dtype=np.uint8)
        layout = {"zarr_format": 2, "compressors": None}
        zarr.create_array(served / "scan.zarr", data=voxels, chunks=(128,) * 3, **layout)
        zarr.create_array(served / "small.zarr", data=voxels[(slice(small),) * 3], chunks=(32,) * 3, **layout)
        moto, s3 = start_moto()
        stack.callback(moto.wait)
        stack.callback(moto.terminate)
        fs = s3fs.S3FileSystem(key="a", secret="b", client_kwargs={"endpoint_url": s3})
        fs.mkdir("scrolls")
        fs.put(f"{served}/", "scrolls/", recursive=True, ACL="public-read")
        web = Web(served)
        stack.callback(web.close)
        http, bucket = stack.enter_context(slow_line(web.url)), stack.enter_context(slow_line(s3))
        options = {"anon": True, "client_kwargs": {"endpoint_url": bucket}}
        kinds = {"http": (http, {}), "s3": ("s3://scrolls", options)}
        big = {kind: (f"{url}/scan.zarr", told) for kind, (url, told) in kinds.items()}
        bench_reading(big, voxels, 1 if quick else 4)
        print()
        bench_traffic({kind: (f"{url}/small.zarr", told) for kind, (url, told) in kinds.items()}, folder)


if __name__ == "__main__":
    main()
