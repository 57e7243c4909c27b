"""Settings from TOML: defaults, errors in one line, and the file that is written back."""

import re
import tomllib
from pathlib import Path

import pytest

from inkzarr.core.errors import InputError
from inkzarr.nn.config import Augment, Config, Loss, Network, Scan, read_config

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference" / "settings.md"


def test_a_file_gives_what_it_says_and_defaults_for_the_rest(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("epochs = 3\nwindow = 64\n[network]\nf_maps = 8\n[augment]\nscale = [1, 1]\n")
    config = read_config(path)
    assert (config.epochs, config.window, config.batch) == (3, (64, 64, 64), 2)
    assert config.network == Network(f_maps=8)
    assert config.augment == Augment(scale=(1, 1))
    assert config == Config(epochs=3, window=64, network={"f_maps": 8}, augment={"scale": (1, 1)})


def test_the_file_that_is_written_gives_the_same_run(tmp_path):
    config = Config(
        window=(16, 128, 128), init='ä"b.pt', loss=Loss(dice=0.5), scans=[Scan(volume="a"), Scan(volume="b")]
    )
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert read_config(path) == config
    assert config.changed(read_config(path).model_dump(mode="json")) == []
    saved = config.model_dump(mode="json")
    assert config.with_(seed=1, workers=3).changed(saved) == ["seed"]
    before = Config(network=Network())
    saved = before.model_dump(mode="json")
    del saved["network"]["flat"]  # as runs were saved before there was such a key
    assert before.changed(saved) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", r"key epoch does not exist: did you mean epochs\?"),
        ("[augment]\nrotatoin = 3", r"key augment.rotatoin does not exist: did you mean rotation\?"),
        ("[[scans]]\nvolumes = 'x'", r"key scans.0.volumes does not exist: did you mean volume\?"),
        ("zzz = 3", "key zzz does not exist: known are window, jitter"),
        ("epochs = 0", "epochs is 0: input should be greater than or equal to 1"),
        ("epochs = 'x'", "epochs is 'x': "),
        ("[augment]\nscale = [2, 1]", r"augment.scale: \[2.0, 1.0\] is no span"),
        ("[augment]\nrotation_axes = 'q'", "are no axes"),
        ("window = [16, 0, 16]", "holds no voxel"),
        ("valid_labels = 'x'", "valid_labels need valid_patches"),
        ("epochs = ", "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, text, told):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        read_config(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "nowhere.toml")


def test_settings_are_frozen_and_checked_again():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3
    with pytest.raises(InputError, match="seed is -1"):
        Config().with_(seed=-1)


def test_the_page_of_settings_has_every_key_with_its_default(tmp_path):
    [text] = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "run.toml").write_text(text)
    told = read_config(tmp_path / "run.toml")
    assert told.network == Network()
    assert told.model_dump() == {**Config().model_dump(), "network": Network().model_dump()}
    (tmp_path / "all.toml").write_text(re.sub(r"^# (?=[\w[])", "", text, flags=re.MULTILINE))
    assert read_config(tmp_path / "all.toml").scans[0].patches
    whole = tomllib.loads((tmp_path / "all.toml").read_text())
    tables = (
        (Config, whole),
        (Network, whole["network"]),
        (Augment, whole["augment"]),
        (Loss, whole["loss"]),
    )
    for model, table in (*tables, (Scan, whole["scans"][0])):
        assert set(table) == set(model.model_fields)


@pytest.mark.parametrize("page", ["training.md", "explanation/real_papyrus.md"])
def test_the_files_in_the_docs_are_read(page, tmp_path):
    [text] = re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (tmp_path / "run.toml").write_text(text)
    assert read_config(tmp_path / "run.toml").network.f_maps == 8
