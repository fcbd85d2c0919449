"""Settings: precedence, the built-in overlay, refusals, round trips."""

import dataclasses
import json

import pytest
import tomli_w

from ctxedit.config import (
    BUILTIN,
    Config,
    environment,
    load,
    merge,
    preset_names,
    preset_path,
    to_table,
    validated,
)
from ctxedit.errors import ConfigError
from ctxedit.tables import read_table


@pytest.fixture()
def preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'about = "a test"\nseed = 1\n'
        "[clip]\nframes = 11\nstart = 1\nstride = 1\nsize = 64\n"
        "[edit]\nguidance = 2.0\n[builtin.edit]\nguidance = 3.0\n"
    )
    return str(path)


class TestPrecedence:
    def test_each_source_beats_the_weaker_ones(self, preset, tmp_path):
        file = tmp_path / "file.toml"
        file.write_text("[clip]\nframes = 12\nstart = 2\nstride = 2\n")
        environ = {"CTXEDIT_CLIP_FRAMES": "13", "CTXEDIT_CLIP_START": "3"}
        config = load(preset, file, {"clip": {"frames": 14}}, environ)
        assert (config.clip.frames, config.clip.start, config.clip.stride, config.clip.size) == (14, 3, 2, 64)
        # What nobody set is the default.
        assert config.tune == Config().tune

    @pytest.mark.parametrize("known, frames", [(0, 8), (1, 11), (2, 12), (3, 13), (4, 14)])
    def test_one_key_as_the_sources_are_added(self, preset, tmp_path, known, frames):
        empty = tmp_path / "empty.toml"
        empty.write_text("")
        file = tmp_path / "file.toml"
        file.write_text("[clip]\nframes = 12\n")
        config = load(
            preset if known > 0 else str(empty),
            file if known > 1 else None,
            {"clip": {"frames": 14}} if known > 3 else None,
            {"CTXEDIT_CLIP_FRAMES": "13"} if known > 2 else {},
        )
        assert config.clip.frames == frames

    def test_the_process_environment_is_read_when_none_is_given(self, preset, monkeypatch):
        monkeypatch.setenv("CTXEDIT_SEED", "77")
        assert load(preset).seed == 77


class TestBuiltinOverlay:
    def test_it_overlays_models_that_were_trained_here_as_well(self, preset, tmp_path):
        (tmp_path / "vocabulary.json").write_text("[]")
        assert load(preset, flags={"model": str(tmp_path)}, environ={}).edit.guidance == 3.0

    def test_a_relative_path_to_a_model_becomes_the_whole_path(self, tmp_path, monkeypatch):
        (tmp_path / "mine").mkdir()
        monkeypatch.chdir(tmp_path)
        flags = {"model": "mine", "captioner": "none", "clip_model": "./mine", "control": {"model": "mine"}}
        config = load("ddim", flags=flags, environ={})
        here = str(tmp_path / "mine")
        assert (config.model, config.clip_model, config.control.model) == (here, here, here)
        assert config.captioner == "none", "what is no path stays as it is"
        # A folder that has the name of a setting's value is not meant by it.
        for name in ("lavis", "auto", "builtin"):
            (tmp_path / name).mkdir()
        flags = {"captioner": "lavis", "clip_model": "auto"}
        config = load("ddim", flags=flags, environ={})
        assert (config.model, config.captioner, config.clip_model) == ("builtin", "lavis", "auto")

    def test_it_overlays_only_the_builtin_models(self, preset):
        assert load(preset, environ={}).edit.guidance == 3.0
        assert load(preset, flags={"model": "sd14"}, environ={}).edit.guidance == 2.0

    def test_the_strongest_source_says_which_model_it_is(self, preset, tmp_path):
        file = tmp_path / "file.toml"
        file.write_text('model = "sd14"\n')
        assert load(preset, file, environ={}).edit.guidance == 2.0
        assert load(preset, file, environ={"CTXEDIT_MODEL": BUILTIN}).edit.guidance == 3.0
        flags = {"model": "sd15"}
        assert load(preset, file, flags, {"CTXEDIT_MODEL": BUILTIN}).edit.guidance == 2.0

    def test_it_is_weaker_than_every_stronger_source(self, preset, tmp_path):
        file = tmp_path / "file.toml"
        file.write_text("[edit]\nguidance = 5.0\n")
        assert load(preset, file, environ={}).edit.guidance == 5.0
        assert load(preset, environ={"CTXEDIT_EDIT_GUIDANCE": "6"}).edit.guidance == 6.0

    def test_its_keys_are_checked(self, tmp_path):
        path = tmp_path / "p.toml"
        path.write_text("[builtin.edit]\nguidence = 3.0\n")
        with pytest.raises(ConfigError, match=r"unknown key builtin\.edit\.guidence"):
            load(str(path), environ={})
        path.write_text("builtin = 3\n")
        with pytest.raises(ConfigError, match="builtin"):
            load(str(path), environ={})

    def test_its_keys_are_checked_even_when_it_is_not_used(self, tmp_path):
        path = tmp_path / "p.toml"
        path.write_text('model = "sd14"\n[builtin.edit]\nguidence = 3.0\n')
        with pytest.raises(ConfigError, match="guidence"):
            load(str(path), environ={})


class TestRefusals:
    @pytest.mark.parametrize(
        "table, message",
        [
            ({"edti": {}}, "unknown key edti"),
            ({"edit": {"guidence": 3.0}}, r"unknown key edit\.guidence"),
            ({"edit": 3}, "edit is a table"),
            ({"edit": {"guidance": "much"}}, r"edit\.guidance"),
            ({"edit": {"guidance": True}}, r"edit\.guidance"),
            ({"clip": {"frames": 8.0}}, r"clip\.frames"),
            ({"clip": {"frames": True}}, r"clip\.frames"),
            ({"adapter": {"enabled": 1}}, r"adapter\.enabled"),
            ({"model": 14}, "model"),
            ({"dtype": "float8"}, "dtype"),
            ({"tune": {"trainable_modules": "adapter"}}, r"tune\.trainable_modules"),
            ({"tune": {"trainable_modules": [1]}}, r"tune\.trainable_modules"),
            ({"fusion": {"word_weights": {"cat": "much"}}}, r"fusion\.word_weights\.cat"),
            ({"fusion": {"word_weights": ["cat"]}}, r"fusion\.word_weights"),
            ({"fusion": {"word_weights": {"cat": 1e308}}}, r"word_weights\.cat is too large"),
            ({"tune": {"adapter_lr": 1e300}}, r"tune\.adapter_lr is too large"),
            ({"adapter": {"window": 10**22}}, r"adapter\.window = 1000"),
        ],
    )
    def test_unknown_keys_and_types(self, table, message):
        with pytest.raises(ConfigError, match=message) as error:
            merge(Config(), table)
        assert error.value.hint or "is a table" in error.value.message

    @pytest.mark.parametrize(
        "table",
        [
            {"clip": {"frames": -1}},
            {"clip": {"stride": 0}},
            {"clip": {"start": -1}},
            {"clip": {"size": -8}},
            {"attention": {"window": 0}},
            {"adapter": {"width": 100, "heads": 8}},
            {"adapter": {"heads": 0}},
            {"adapter": {"width": 0}},
            {"adapter": {"width": 6, "heads": 2}},  # rows and columns need sines and cosines each
            {"adapter": {"blocks": 0}},
            {"adapter": {"patch": 0}},
            {"adapter": {"window": 0}},
            {"adapter": {"width": 2**40}},
            {"adapter": {"blocks": 2**63}},
            {"adapter": {"patch": 2**40}},
            {"adapter": {"bound": -0.1}},
            {"tune": {"steps": -1}},
            {"tune": {"lr": 0.0}},
            {"tune": {"lr": float("nan")}},
            {"tune": {"lr": float("inf")}},
            {"tune": {"adapter_lr": -1.0}},
            {"tune": {"weight_decay": -1.0}},
            {"tune": {"max_grad_norm": -1.0}},
            {"tune": {"save_every": 0}},
            {"invert": {"steps": 0}, "edit": {"steps": 0}},
            {"invert": {"steps": 1001}, "edit": {"steps": 1001}},
            {"invert": {"fixed_point_iterations": -1}},
            {"edit": {"guidance": -1.0}},
            {"edit": {"guidance": float("nan")}},
            {"edit": {"guidance": float("inf")}},
            {"edit": {"eta": 1.5}},
            {"edit": {"strength": 0.0}},
            {"fusion": {"self_replace_steps": 1.1}},
            {"fusion": {"cross_replace_steps": -0.1}},
            {"fusion": {"mask_threshold": 1.0}},
            {"attention": {"frames": "acausal"}},
            {"fusion": {"max_resolution": 0.0}},
            {"fusion": {"max_resolution": 2.0}},
        ],
        ids=lambda t: ", ".join(f"{a}.{k}={v}" for a, b in t.items() for k, v in b.items()),
    )
    def test_out_of_range(self, table):
        with pytest.raises(ConfigError):
            validated(merge(Config(), table))

    def test_the_defaults_and_the_edges_are_in_range(self):
        validated(Config())
        validated(
            merge(
                Config(),
                {"fusion": {"self_replace_steps": 1.0, "cross_replace_steps": 0.0, "mask_threshold": 0.0}},
            )
        )
        validated(merge(Config(), {"tune": {"steps": 0}, "edit": {"guidance": 0.0, "eta": 1.0}}))

    def test_sampling_walks_the_levels_of_the_inversion(self):
        with pytest.raises(ConfigError, match=r"invert\.steps"):
            validated(merge(Config(), {"edit": {"steps": 10}}))
        validated(merge(Config(), {"edit": {"steps": 10, "start": "noise"}}))

    def test_unknown_preset_lists_those_that_are(self):
        with pytest.raises(ConfigError, match="no preset named 'contextdif'") as error:
            load("contextdif", environ={})
        assert "contextdiff" in error.value.hint

    def test_missing_and_broken_files(self, tmp_path):
        with pytest.raises(ConfigError, match="does not exist"):
            load(str(tmp_path / "gone.toml"), environ={})
        with pytest.raises(ConfigError, match="does not exist"):
            load("contextdiff", tmp_path / "gone.toml", environ={})
        broken = tmp_path / "broken.toml"
        for text in (b"[edit\nsteps = 3", b"\xff\xfe\x00"):
            broken.write_bytes(text)
            with pytest.raises(ConfigError, match=r"broken\.toml"):
                read_table(broken)
        with pytest.raises(ConfigError):
            read_table(tmp_path)


class TestEnvironment:
    def test_values_are_written_as_in_toml_and_text_as_it_is(self):
        table = environment(
            {
                "CTXEDIT_MODEL": "CompVis/stable-diffusion-v1-4",
                "CTXEDIT_CLIP_MODEL": "openai/clip-vit-base-patch32",
                "CTXEDIT_EDIT_NEGATIVE_PROMPT": "blurry, 3 = 4",
                "CTXEDIT_ADAPTER_ENABLED": "false",
                "CTXEDIT_TUNE_TRAINABLE_MODULES": '["attn1", "adapter"]',
                "CTXEDIT_FUSION_WORD_WEIGHTS": "{cat = 3, dog = 0.5}",
                "CTXEDIT_TUNE_LR": "1e-4",
            }
        )
        config = merge(Config(), table)
        assert config.model == "CompVis/stable-diffusion-v1-4"
        assert config.clip_model == "openai/clip-vit-base-patch32"
        assert config.edit.negative_prompt == "blurry, 3 = 4"
        assert config.adapter.enabled is False
        assert config.tune.trainable_modules == ("attn1", "adapter")
        assert config.fusion.word_weights == {"cat": 3.0, "dog": 0.5}
        assert config.tune.lr == 1e-4

    def test_other_variables_are_left_alone(self):
        assert environment({"CTXEDIT_DEBUG": "1", "HOME": "/", "CTXEDIT_EDIT": "3"}) == {}

    @pytest.mark.parametrize("text", ["three", "", "True", "1, 2"])
    def test_what_is_no_value_is_refused_by_its_name(self, text):
        with pytest.raises(ConfigError, match="CTXEDIT_EDIT_STEPS"):
            environment({"CTXEDIT_EDIT_STEPS": text})

    def test_a_value_of_another_type_is_refused(self):
        with pytest.raises(ConfigError, match=r"edit\.steps"):
            load("contextdiff", environ={"CTXEDIT_EDIT_STEPS": "3.5"})


def changed_everywhere():
    """A config of which every table differs from the default."""
    return merge(
        Config(),
        {
            "model": "sd14",
            "seed": 5,
            "clip": {"frames": 24},
            "attention": {"temporal": True},
            "adapter": {"bound": 0.25},
            "control": {"kind": "video", "map": "depth.mp4", "scale": 0.5},
            "tune": {"trainable_modules": ["temporal", "attn1.to_q"]},
            "invert": {"fixed_point_iterations": 2},
            "fusion": {"word_weights": {"cat": 3.0, "x.y z": 0.5}},
            "edit": {"negative_prompt": 'a "quoted" \\ word'},
            "window": {"size": 12},
            "upscale": {"steps": 3},
        },
    )


def test_table_and_back():
    config = changed_everywhere()
    assert all(
        getattr(config, f.name) != getattr(Config(), f.name)
        for f in dataclasses.fields(Config)
        if dataclasses.is_dataclass(getattr(config, f.name))
    )
    assert merge(Config(), to_table(config)) == config
    assert merge(Config(), json.loads(json.dumps(to_table(config)))) == config


def test_toml_and_back(tmp_path):
    config = changed_everywhere()
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(to_table(config)))
    assert merge(Config(), read_table(file)) == config


def test_merging_leaves_the_original_alone():
    base = Config()
    merge(base, {"edit": {"guidance": 1.0}, "fusion": {"word_weights": {"cat": 2.0}}})
    assert base == Config()


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("model", [BUILTIN, "sd14"])
def test_every_preset_that_ships_loads(name, model):
    assert preset_path(name).is_file()
    assert load(name, flags={"model": model}, environ={}).model == model
