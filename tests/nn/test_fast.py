"""The fast network gives the plain one's probabilities, and the same bits however it is run."""

import gc
import threading

import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from inkzarr.core.errors import InputError
from inkzarr.nn.fast import prepare
from inkzarr.nn.unet import UNet3D
from tests.peers import theirs


def network(seed=0, **options):
    """A network whose normalisations are not the identity that they start as."""
    torch.manual_seed(seed)
    model = UNet3D(**{"f_maps": 8, "levels": 3, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


TILED = {"f_maps": 32, "levels": 2}
"""Of windows that are wide enough `inkzarr.nn.winograd` convolves nearly all."""
routes = pytest.mark.parametrize(("options", "shape"), [({}, (16, 16, 16)), (TILED, (8, 8, 40))])


def windows(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def difference(model, batch, **options):
    with torch.inference_mode():
        plain = model(batch)
    fast = prepare(model, **options)(batch)
    assert fast.shape == plain.shape
    assert fast.dtype == torch.float32
    return float((fast.sigmoid() - plain.sigmoid()).abs().max())


@pytest.fixture
def threads():
    """Sets torch's threads, and sets them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("window", [(32, 48, 16), (16, 32, 64)])
def test_published_architecture(window):
    assert difference(network(f_maps=32, levels=5), windows(1, 1, *window)) < 1e-4


@pytest.mark.slow
def test_a_real_window_gives_what_pytorch3dunet_gives(real_data):
    """Papyrus 13 voxels deep, zeros beyond, of the architecture that is published."""
    papyrus = zarr.open_array(real_data / "scroll1_20231005123335_2-4_left" / "volume.zarr", mode="r")
    batch = torch.zeros(1, 1, 16, 128, 128)
    batch[0, 0, :13] = torch.from_numpy(papyrus[:, 600:728, 400:528]) / 255
    model = network(f_maps=32, levels=5)
    peer = theirs(f_maps=32, levels=5).eval()
    peer.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected = peer(batch).sigmoid()
    assert float(expected.std()) > 0.01
    assert float((prepare(model)(batch).sigmoid() - expected).abs().max()) < 1e-4


@given(
    f_maps=st.sampled_from([4, 8, [4, 16], [16, 8, 24]]),
    groups=st.sampled_from([1, 2, 4]),
    channels=st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 3)),
    size=st.tuples(*[st.integers(1, 3)] * 3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
    flat=st.booleans(),
)
def test_any_architecture_and_window(f_maps, groups, channels, size, batch, seed, flat):
    options = {"in_channels": channels[0], "out_channels": channels[1], "flat": flat}
    model = network(seed, f_maps=f_maps, groups=groups, **options)
    z, y, x = size
    window = (z if flat else 4 * z, 4 * y, 4 * x)
    assert difference(model, windows(batch, channels[0], *window, seed=seed)) < 1e-4


@routes
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_windows_of_one_value(options, shape, value):
    """Nothing varies but near the border: a variance from squares and means would be lost."""
    assert difference(network(**options), torch.full((1, 1, *shape), value)) < 1e-4


@routes
def test_one_voxel_far_above_all_others(options, shape):
    batch = windows(1, 1, *shape)
    batch[0, 0, 3, 4, 5] = 1e4
    assert difference(network(**options), batch) < 1e-4


def test_reduced_precision_stays_near():
    assert difference(network(), windows(1, 1, 16, 16, 16), dtype=torch.bfloat16) < 0.05


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({"f_maps": 32, "levels": 5}, 48),
        ({"f_maps": 12, "groups": 2}, 32),
        ({"f_maps": 32, "flat": True}, 32),
    ],
)
def test_same_bits_for_any_number_of_threads_and_any_batch(threads, options, side):
    """These sizes are ones where torch's own kernels differ between 1, 2 and 3 threads."""
    model, batch = network(**options), windows(2, 1, side, side, side)
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        fast = prepare(model)
        assert torch.get_num_threads() == count
        results += [fast(batch) if count > 1 else torch.cat([fast(batch[1:]), fast(batch[:1])]).flip(0)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@routes
def test_same_bits_from_many_callers(threads, options, shape):
    threads(2)
    fast, batch = prepare(network(**options)), windows(4, 1, *shape)
    expected, results = fast(batch), {}

    def call(at):
        results[at] = fast(batch[at : at + 1])

    callers = [threading.Thread(target=call, args=(at,)) for at in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert torch.equal(torch.cat([results[at] for at in range(4)]), expected)


@routes
def test_neither_input_nor_model_is_touched(options, shape):
    model, batch = network(**options), windows(2, 1, *shape)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    kept, fast = batch.clone(), prepare(model)
    first = fast(batch)
    assert torch.equal(batch, kept)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast(batch), first)


def test_windows_of_other_sizes_in_turn():
    """Maps lie where those of the window before lay; no result does."""
    fast = prepare(network(**TILED))
    batches = [
        windows(1, 1, *shape) for shape in [(8, 8, 64), (4, 8, 32), (8, 8, 16), (8, 16, 64), (8, 8, 64)]
    ]
    found = [fast(batch) for batch in batches]
    assert all(torch.equal(prepare(network(**TILED))(b), one) for b, one in zip(batches, found, strict=True))


def test_memory_is_kept_for_as_many_windows_as_run_at_once(threads):
    threads(4)
    fast = prepare(network(**TILED))
    for seed in range(8):
        fast(windows(1, 1, 4, 4, 32, seed=seed))
    assert len(fast._spare) == 1
    fast.release()
    assert not fast._spare


def test_integers_and_other_layouts_are_taken():
    fast, batch = prepare(network(in_channels=2)), windows(2, 2, 8, 8, 8)
    assert torch.equal(fast(batch.contiguous(memory_format=torch.channels_last_3d)), fast(batch))
    assert torch.equal(fast(batch.double()), fast(batch))


def test_the_joined_map_is_never_stored(monkeypatch):
    def forbidden(*args, **options):
        pytest.fail("the small map was doubled")

    monkeypatch.setattr(functional, "interpolate", forbidden)
    prepare(network())(windows(1, 1, 8, 8, 8))


def test_workers_end_with_the_network():
    before = set(threading.enumerate())
    fast = prepare(network())
    workers = set(threading.enumerate()) - before
    assert len(workers) == torch.get_num_threads()
    del fast
    gc.collect()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.parametrize("shape", [(6, 8, 8), (8, 8, 7), (0, 8, 8)])
def test_windows_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(InputError, match=r"multiple of 4, as it is halved"):
        prepare(network())(torch.zeros(1, 1, *shape))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_on_a_gpu(dtype, most):
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: this test needs one")
    model, batch = network(f_maps=32, levels=5), windows(2, 1, 64, 64, 64)
    with torch.inference_mode():
        plain = model(batch)
    fast = prepare(model, dtype=dtype, device="cuda")(batch).cpu()
    assert (fast.sigmoid() - plain.sigmoid()).abs().max() < most
