"""Presets that change other presets."""

import pytest

from ctxedit.config import load
from ctxedit.errors import ConfigError
from ctxedit.tables import preset_table, read_table


def write(folder, name, text):
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


def test_a_preset_is_laid_over_its_base_key_by_key(tmp_path):
    write(tmp_path, "a", 'about = "a"\n[tune]\nsteps = 7\nlr = 0.5\n[builtin.tune]\nsteps = 3\n')
    b = write(tmp_path, "b", 'about = "b"\nbase = "a.toml"\n[tune]\nlr = 0.25\n[edit]\nguidance = 2.0\n')
    c = write(tmp_path, "c", 'base = "b.toml"\n[builtin.tune]\nlr = 0.125\n')
    assert preset_table(b) == {
        "about": "b",
        "tune": {"steps": 7, "lr": 0.25},
        "edit": {"guidance": 2.0},
        "builtin": {"tune": {"steps": 3}},
    }
    assert load(c, flags={"model": "sd14"}, environ={}).tune.lr == 0.25
    # The base's overlay stays above the plain settings of what changes it.
    assert (load(c, environ={}).tune.steps, load(c, environ={}).tune.lr) == (3, 0.125)
    assert load(c, environ={}).edit.guidance == 2.0


def test_a_base_may_be_a_preset_that_ships(tmp_path):
    mine = write(tmp_path, "mine", 'base = "fatezero"\n[edit]\nguidance = 3.0\n')
    config, theirs = (load(p, flags={"model": "sd14"}, environ={}) for p in (mine, "fatezero"))
    assert config.edit.guidance == 3.0 and config.fusion == theirs.fusion


@pytest.mark.parametrize(
    "text, said",
    [
        ('base = "nothing"', "no preset named 'nothing'"),
        ('base = "gone.toml"', "gone.toml"),
        ("base = 3", "base = 3"),
        ('base = ""', "base = ''"),
        ('base = "self.toml"', "self → self"),
        ('base = "round.toml"', "self → round → self"),
    ],
)
def test_bad_bases_are_refused(tmp_path, text, said):
    write(tmp_path, "round", 'base = "self.toml"')
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "self", text), environ={})
    assert (said in caught.value.message and caught.value.hint) or said == "gone.toml"


@pytest.mark.parametrize("name", ["tune-a-video", "fatezero", "controlvideo"])
def test_with_the_adapter_a_preset_is_its_base_and_the_adapter(name):
    for model in ("builtin", "sd14"):
        plain, more = (load(n, flags={"model": model}, environ={}) for n in (name, f"{name}+adapter"))
        assert more.adapter.enabled and not plain.adapter.enabled
        assert set(more.tune.trainable_modules) == (
            set(plain.tune.trainable_modules) if plain.tune.steps else set()
        ) | {"adapter"}
        for part in ("attention", "control", "invert", "fusion", "edit", "clip"):
            assert getattr(more, part) == getattr(plain, part), part
        assert more.adapter == load("contextdiff", flags={"model": model}, environ={}).adapter
        assert more.tune.steps > 0


def test_reading_a_file_that_names_a_base_reads_that_file_alone(tmp_path):
    assert read_table(tmp_path.joinpath(write(tmp_path, "x", 'base = "fatezero"'))) == {"base": "fatezero"}
