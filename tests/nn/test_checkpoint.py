"""Checkpoints: what is written comes back, what people saved loads, and what is wrong is told in a line."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.nn.checkpoint import Normalisation, load_checkpoint, save_checkpoint
from inkzarr.nn.unet import UNet3D


def small(seed=0, **options):
    torch.manual_seed(seed)
    return UNet3D(**{"f_maps": 4, "levels": 2, **options})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pt"


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or "axes" in str(caught.value)
    return str(caught.value)


def test_what_is_saved_comes_back(path):
    model = small(groups=2, in_channels=2, out_channels=3)
    save_checkpoint(path, model, normalisation=Normalisation(5, 60), axes="yxz", lineage={"b": "2", "a": "1"})
    back = load_checkpoint(path)
    assert same(back.model.state_dict(), model.state_dict())
    assert (back.model.groups, back.model.in_channels, back.model.out_channels) == (2, 2, 3)
    assert (back.normalisation, back.axes, back.lineage) == (
        Normalisation(5, 60),
        "yxz",
        {"a": "1", "b": "2"},
    )
    assert not back.model.training
    assert back.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_checkpoint(path, axes="zyx").axes == "zyx"
    assert set(torch.load(path, weights_only=True)) == {
        "format", "version", "state_dict", "architecture", "normalisation", "axes", "lineage",
    }  # fmt: skip


def test_flat_kernels_are_told_by_their_shape(path):
    model = small(flat=True)
    save_checkpoint(path, model)
    assert load_checkpoint(path).model.flat
    torch.save(model.state_dict(), path)
    back = load_checkpoint(path).model
    window = torch.rand(1, 1, 1, 4, 8)
    assert torch.equal(back(window), model.eval()(window))


def test_same_content_same_bytes_whatever_the_name(tmp_path):
    first, second, third = (tmp_path / name for name in ("a.pt", "longer.pt", "third.ckpt"))
    lineage = {"run": "x" * 3, "scroll": "1"}
    save_checkpoint(first, small(), lineage=lineage)
    save_checkpoint(second, small().double().float(), lineage=dict(reversed(lineage.items())))
    back = load_checkpoint(first)
    save_checkpoint(third, back.model, normalisation=back.normalisation, axes=back.axes, lineage=back.lineage)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_writing_leaves_the_old_file_or_the_new_one(path, monkeypatch):
    save_checkpoint(path, small(0))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(InputError, match="No space left"):
            save_checkpoint(path, small(1))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match="check its folder"):
        save_checkpoint(path.parent / "none" / "net.pt", small())


@given(
    prefixes=st.lists(st.sampled_from(["module.", "model.", "_orig_mod."]), max_size=3),
    nests=st.lists(st.sampled_from(["model_state_dict", "state_dict", "model"]), max_size=2),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
)
def test_bare_state_dicts_load(tmp_path_factory, prefixes, nests, dtype):
    path = tmp_path_factory.mktemp("bare") / "net.pth"
    weights = small(levels=3).to(dtype).state_dict()
    content = {"".join(prefixes) + name: value for name, value in weights.items()}
    for nest in nests:
        content = {nest: content, "epoch": 3}
    torch.save(content, path)
    back = load_checkpoint(path)
    assert (back.model.f_maps, back.model.groups, back.axes) == ((4, 8, 16), 4, "zyx")
    assert back.normalisation == Normalisation()
    assert same(back.model.state_dict(), {name: value.float() for name, value in weights.items()})


def test_groups_of_a_bare_state_dict_are_given(path):
    torch.save(small(groups=2).state_dict(), path)
    assert load_checkpoint(path, groups=2).model.groups == 2
    refused(path, "4 channels do not divide into 3 groups", groups=3)


def changed(**changes):
    weights = small().state_dict()
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    return weights


NAN = torch.full((1,), float("nan"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"a": torch.zeros(3)}, r"56 \(.*, \.\.\.\) missing; 1 \(a\) unexpected"),
        ({}, "missing"),
        ([1, 2], "holds a list: it must be a dict"),
        (changed(final_conv__bias=None), r"1 \(final_conv.bias\) missing$"),
        (changed(extra=torch.zeros(1)), r"1 \(extra\) unexpected$"),
        (changed(final_conv__bias=torch.zeros(2)), r"1 \(final_conv.bias \(2,\) for \(1,\)\) wrong-shaped$"),
        (changed(final_conv__weight=torch.zeros(1, 4)), "wrong-shaped"),
        (changed(final_conv__bias=NAN), r"not finite: 1 \(final_conv.bias\)"),
        (changed(final_conv__bias=torch.ones(1, dtype=torch.int64)), "no plain floating-point"),
        (changed(final_conv__bias=torch.zeros(1).to_sparse()), "no plain floating-point"),
        (changed(final_conv__bias=torch.zeros(1).expand(10**12)), "no plain floating-point"),
        (changed(module__final_conv__bias=torch.zeros(1)), "final_conv.bias is given twice"),
        ({"state_dict": changed(), "loss": np.float64(0.5)}, "numpy values.*keep its state_dict"),
    ],
)
def test_what_is_no_network_is_told(path, content, match):
    torch.save(content, path)
    refused(path, match)


def test_a_residual_network_is_told_by_name(path):
    weights = {
        name.replace("SingleConv2", "conv3"): value for name, value in small(levels=3).state_dict().items()
    }
    torch.save(weights, path)
    assert len(refused(path, "not of a UNet3D of pytorch-3dunet")) < 900


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("save", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_malicious_pickle_is_never_run(path, tmp_path, save):
    mark = tmp_path / "owned"
    save({"state_dict": small().state_dict(), "bomb": Bomb(mark)}, path)
    refused(path, "could run code|no checkpoint")
    assert not mark.exists()


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / "none.pt", "No such file.*check the path")
    refused(tmp_path, "Is a directory")


@given(share=st.floats(0, 0.999))
def test_truncated_files_are_refused(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "net.pt"
    save_checkpoint(path, small())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "damaged, cut short or no checkpoint")


@given(noise=st.binary(max_size=200))
def test_noise_is_refused(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "net.pt"
    path.write_bytes(noise)
    refused(path, "net.pt")


@given(data=st.data())
def test_flipped_bytes_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "net.pt"
    save_checkpoint(path, small())
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        model = load_checkpoint(path).model
    except InputError:
        return
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def edited(path, **fields):
    save_checkpoint(path, small())
    torch.save(torch.load(path, weights_only=True) | fields, path)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"version": 2}, "version 2, this inkzarr reads up to 1: update"),
        ({"version": "one"}, "lacks or garbles"),
        ({"normalisation": {"low": 0.0}}, "lacks or garbles"),
        ({"normalisation": {"low": 3.0, "high": 1.0}}, "cannot normalise"),
        (
            {"architecture": {"name": "UNet3D", "groups": 4, "f_maps": [8, 16]}},
            r"says f_maps \[8, 16\] but has",
        ),
        ({"lineage": {"a": 1}}, "lacks or garbles"),
        ({"axes": "zzz"}, "axes 'zzz' cannot be"),
        ({"axes": None}, "lacks or garbles"),
    ],
)
def test_garbled_fields_are_told(path, fields, match):
    edited(path, **fields)
    with pytest.raises(InputError, match=match):
        load_checkpoint(path)


@pytest.mark.parametrize("axes", ["zy", "zyy", "zyxz", "abc", "ZYX"])
def test_axes_are_a_permutation(path, axes):
    with pytest.raises(InputError, match="name z, y and x once each"):
        save_checkpoint(path, small(), axes=axes)
    save_checkpoint(path, small())
    refused(path, "once each", axes=axes)


def test_a_diverged_model_is_not_saved(path):
    model = small()
    with torch.no_grad():
        model.final_conv.bias.fill_(float("inf"))
    with pytest.raises(InputError, match="not finite"):
        save_checkpoint(path, model)
    assert not path.exists()


@given(
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "float32"]),
    fixed=st.one_of(st.none(), st.tuples(st.integers(-100, 100), st.integers(1, 100))),
    seed=st.integers(0, 9),
)
def test_scaling_is_what_it_says(dtype, fixed, seed):
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(seed).integers(-120, 120, 50).astype(dtype)
    norm = Normalisation() if fixed is None else Normalisation(fixed[0], sum(fixed))
    low, high = norm.bounds(dtype)
    scaled = norm.scale(torch.from_numpy(raw), dtype)
    assert scaled.dtype == torch.float32
    np.testing.assert_allclose(scaled, (raw.astype(float) - low) / (high - low), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "bounds", [(1, None), (None, 1), (1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)]
)
def test_bounds_are_finite_and_in_order(bounds):
    with pytest.raises(InputError, match="finite low < high"):
        Normalisation(*bounds)


def test_strange_dtypes_are_refused():
    with pytest.raises(InputError, match="dtype bool"):
        Normalisation().bounds(np.dtype(bool))
