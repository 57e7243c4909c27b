"""What the way of training is worth, on a synthetic scroll whose upper part is held out.

    python -m benchmarks.learning             # about ten minutes, 2 cores
    python -m benchmarks.learning --quick     # seconds, as the tests run it

ignored     voxels that nobody labelled take no part in the loss: how `train` learns
no ink      the same run, told that what nobody labelled is no ink
pretrained  the same run as the first, from a network that filled in masked boxes of the unlabelled scan
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.report import is_quick, machine
from inkzarr.demo import CONFIG, LEARNED, SCROLL, prepare
from inkzarr.pretrain import pretrain
from inkzarr.testing.synthetic import SyntheticScroll
from inkzarr.train import train


def compare(home: Path, scroll: SyntheticScroll, epochs: int, before: int) -> dict[str, list[dict]]:
    """The lines of each run's log. One winding alone is labelled, and its neighbours carry ink as well."""
    winding = scroll.segments(slice(0, int(LEARNED * scroll.shape[0])))[-2].id
    prepare(home, scroll, only=(winding,))
    scan, table = home / "scan.zarr", home / "train.parquet"
    config = CONFIG.with_(
        epochs=epochs, valid_labels=str(home / "held.zarr"), valid_patches=str(home / "held.parquet")
    )
    pretrain([scan], home / "masked", CONFIG.with_(epochs=before))
    runs = {
        "ignored": config,
        "no ink": config.with_(loss={"unlabelled": "no ink"}),
        "pretrained": config.with_(init=str(home / "masked" / "last.pt")),
    }
    logs: dict[str, list[dict]] = {name: [] for name in runs}
    for name, settings in runs.items():
        train(scan, home / "learned.zarr", table, home / name, settings, on_epoch=logs[name].append)
    return logs


def main(arguments=None):
    quick = is_quick(__doc__, arguments)
    scroll = SyntheticScroll(shape=(144, 160, 160), letter=30) if quick else SCROLL
    print(f"{machine()}; {scroll.shape}, seed 0")
    with tempfile.TemporaryDirectory() as folder:
        logs = compare(Path(folder), scroll, *((2, 1) if quick else (12, 10)))
    for what in ("valid_loss", "f05", "auc"):
        print(f"\n{what} of held-out labels, after each epoch")
        for name, entries in logs.items():
            print(f"  {name:<12}" + "".join(f"{entry[what]:>8.4f}" for entry in entries))
    reached = {name: [entry["valid_loss"] for entry in entries] for name, entries in logs.items()}
    goal = min(reached["ignored"])
    first = next((i for i, loss in enumerate(reached["pretrained"], 1) if loss <= goal), None)
    alone = reached["ignored"].index(goal) + 1
    told = "never" if first is None else f"after {first} epochs"
    print(
        f"\nthe least loss without pretraining ({goal:.4f}, after {alone} epochs) is reached with it {told}"
    )


if __name__ == "__main__":
    main()
