"""What labels are made from: label PNGs, versions of segments, and every bad input told in one line."""

import json
import math
import struct

import numpy as np
import pytest
from PIL import Image

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.png import write_png
from inkzarr.labels import LabelSettings, plan_labels
from inkzarr.readers.label_png import open_label
from inkzarr.readers.segments import find_segments
from tests.labelling import RULES, png, run, small


def test_every_kind_of_png_is_told_by_its_rule(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (20, 31), "uint8")
    deep = grey.astype(np.uint16) * 257 + 100
    rgba = np.dstack([grey, grey // 2, grey * 0, np.where(grey > 99, 255, 51).astype(np.uint8)])
    opaque = np.where(grey > 99, 255, 51)
    kinds = {
        "grey": (Image.fromarray(grey), grey),
        "bit": (Image.fromarray(grey > 128), np.where(grey > 128, 255, 0)),
        "deep": (Image.fromarray(deep), (deep.astype(int) + 128) // 257),
        "rgb": (Image.fromarray(rgba[..., :3]), grey),
        "rgba": (Image.fromarray(rgba), (2 * grey.astype(int) * opaque + 255) // 510),
        "palette": (Image.fromarray(grey).convert("P"), grey),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / f"{name}.png")
        label = open_label(tmp_path / f"{name}.png")
        assert label.shape == (20, 31), name
        np.testing.assert_array_equal(label.read((20, 31)), expected, err_msg=name)
        np.testing.assert_array_equal(label.read((9, 8)), expected[:9, :8], err_msg=name)
    deep = struct.pack(">8sI4sIIBBBBB", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 31, 20, 16, 2, 0, 0, 0)
    (tmp_path / "deep_colour.png").write_bytes(deep)
    with pytest.raises(InputError, match="has 16 bits a colour"):
        open_label(tmp_path / "deep_colour.png")
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "shallow.png")
    with pytest.raises(InputError, match="no value above 255"):
        open_label(tmp_path / "shallow.png").read((20, 31))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    part = small(tmp_path)
    assert part
    write_png(tmp_path / "ink/10_inklabels.png", (32767, 32767), [])
    refused(tmp_path, "is 32767 x 32767 pixels but its surface is 6 x 9")


def test_a_label_beyond_every_decompression_limit_is_read(tmp_path):
    shape = (14000, 13500)
    bands = (np.full((1000, shape[1]), n, np.uint8) for n in range(14))
    write_png(tmp_path / "a.png", shape, bands)
    values = open_label(tmp_path / "a.png").read((13999, 13000))
    assert (values[::1000, 5] == np.arange(14)).all()


def test_versions_only_and_exclude(tmp_path):
    for name in ("101", "102", "103", "205", "301"):
        small(tmp_path, name)
    (tmp_path / "ink" / "103_inklabels.png").unlink()
    place = tmp_path / "paths", tmp_path / "ink"

    def ids(**options):
        return [segment.id for segment in find_segments(*place, **options)]

    assert ids() == ["102", "205", "301"]
    assert ids(only=["10?"], exclude=["103"], all_versions=True) == ["101", "102"]
    assert ids(exclude=["1*", "301"]) == ["205"]
    with pytest.raises(InputError, match="no label for 103"):
        ids(all_versions=True)
    with pytest.raises(InputError, match="is one label"):
        find_segments(tmp_path / "paths", tmp_path / "ink" / "101_inklabels.png")
    one = find_segments(tmp_path / "paths" / "101" / "101.ppm", tmp_path / "ink" / "101_inklabels.png")
    assert [segment.id for segment in one] == ["101"]


def test_versions_left_out_are_told(tmp_path):
    for name in ("101", "102", "103", "205"):
        small(tmp_path, name)
    (tmp_path / "ink" / "103_inklabels.png").unlink()
    report = run(tmp_path, shape=Zyx(16, 16, 16))
    assert "left out   101, 103 in favour of 102\n" in str(report)
    told = json.loads((tmp_path / "out.zarr" / "ink" / ".zattrs").read_text())["inkzarr"]["segments"]
    assert told["102"]["instead_of"] == ["101", "103"]
    assert "instead_of" not in told["205"]
    settings = LabelSettings(shape=Zyx(16, 16, 16), **RULES)
    plan = str(plan_labels(tmp_path / "paths", tmp_path / "ink", tmp_path / "other.zarr", settings))
    assert "101, 103 in favour of 102" in plan


def refused(folder, match, **settings):
    with pytest.raises(InputError, match=match):
        run(folder, "bad.zarr", RunOptions(), **{"shape": Zyx(16, 16, 16), **settings})
    chosen = {"shape": Zyx(16, 16, 16), **RULES, **settings}
    with pytest.raises(InputError, match=match):
        plan_labels(folder / "paths", folder / "ink", folder / "bad.zarr", LabelSettings(**chosen))
    assert not list(folder.glob("*bad.zarr*"))


def test_bad_inputs_are_told_and_nothing_is_written(tmp_path):
    refused(tmp_path, "does not exist: give the segments' folder")
    (tmp_path / "paths").mkdir()
    (tmp_path / "ink").mkdir()
    refused(tmp_path, "holds no segment")
    small(tmp_path)
    ppm, label = tmp_path / "paths/10/10.ppm", tmp_path / "ink/10_inklabels.png"
    whole = ppm.read_bytes()
    refused(tmp_path, "segment 99 is not in", only=("99",))
    refused(tmp_path, "leave no segment", exclude=("1*",))
    refused(tmp_path, "shape is not known", shape=None)
    refused(tmp_path, "shape 5,5,1000000000 is too large", shape=Zyx(5, 5, 10**9))
    refused(tmp_path, "both a volume", like="a.zarr")
    ppm.write_bytes(whole[:-8])
    refused(tmp_path, "cut short")
    ppm.write_bytes(whole.replace(b"width: 9", b"width: 8"))
    refused(tmp_path, "longer than its header says")
    ppm.write_bytes(whole)
    for shape in ((5, 9), (6, 8), (6 + 256, 9), (6, 9 + 256)):
        png(label, np.full(shape, 255, np.uint8))
        refused(tmp_path, rf"is {shape[0]} x {shape[1]} pixels but its surface is 6 x 9")
    png(label, np.zeros((6, 9), np.uint8))
    refused(tmp_path, "54 blank", skip_blank=128)
    png(label, np.full((6, 9), 9, np.uint8))
    png(tmp_path / "ink/10_supervision_mask.png", np.zeros((6, 9), np.uint8))
    refused(tmp_path, "54 unsupervised")
    png(tmp_path / "ink/10_supervision_mask.png", np.ones((6, 8), np.uint8))
    refused(tmp_path, "supervision_mask.png is 6 x 8")
    (tmp_path / "ink/10_supervision_mask.png").unlink()
    png(tmp_path / "paths/10/10_mask.png", np.zeros((6, 9), np.uint8))
    refused(tmp_path, "54 without a place")
    (tmp_path / "paths/10/10_mask.png").unlink()
    refused(tmp_path, "54 outside", shape=Zyx(1, 16, 16), depth=2)
    label.write_bytes(label.read_bytes()[:-30])
    refused(tmp_path, "cannot be read as PNG")
    label.write_bytes(b"GIF89a" * 20)
    refused(tmp_path, "is no PNG")
    label.unlink()
    refused(tmp_path, "no label for 10")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"depth": -1}, "depth -1"),
        ({"depth": 0.3}, "whole or half"),
        ({"depth": math.nan}, "depth nan"),
        ({"footprint": "sphere"}, "ray or box"),
        ({"depth": 200, "footprint": "box"}, "too much for boxes"),
        ({"skip_blank": -1}, "skip_blank -1"),
        ({"flat": math.nan}, "flat nan"),
        ({"flat": -math.inf}, "flat -inf"),
        ({"flat": 3, "only": ("10",)}, "leave out --only"),
        ({"flat": 3, "exclude": ("10",)}, "leave out --only"),
        ({"flat": 3, "all_versions": True}, "leave out --only"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(InputError, match=match):
        LabelSettings(**settings)
