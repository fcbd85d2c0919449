"""Help, version, lazy imports: what answers before anything heavy is loaded."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "huggingface_hub", "av", "decord", "numpy", "PIL")
COMMANDS = ("run", "caption", "tune", "edit", "t2i", "eval", "presets", "models", "env")


def modules_after(code):
    script = f"import sys\n{code}\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split()), done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["presets", "ls"], ["--version"]])
def test_light_commands_import_nothing_heavy(arguments):
    loaded, out = modules_after(f"from ctxedit.cli import main\nassert main({arguments!r}) == 0")
    assert "ctxedit.cli.app" in loaded and out
    assert loaded.isdisjoint(HEAVY)


def test_the_package_is_imported_lazily_and_offers_its_api():
    loaded, _ = modules_after("import ctxedit\nassert 'tune' in dir(ctxedit)")
    assert loaded.isdisjoint(HEAVY)
    import ctxedit

    for name in ctxedit.__all__:
        assert getattr(ctxedit, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = ctxedit.nothing


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(ctxedit, command):
    answer = ctxedit(command, "--help")
    assert answer.code == 0 and answer.err == "" and f"ctxedit {command}" in answer.out


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("run", "run [OPTIONS] CLIP [TEXT...]"), ("edit", "edit [OPTIONS] [CLIP] TEXT"),
        ("t2i", "t2i [OPTIONS] [TEXT]"), ("bench answers", "answers [OPTIONS] DIR ANSWERS..."),
        ("presets cp", "cp [OPTIONS] NAME [PATH]"), ("bench", "run [OPTIONS] [LIST]"),
    ],
)  # fmt: skip
def test_usage_names_each_argument_once(ctxedit, command, usage):
    (line,) = [one.strip() for one in ctxedit(*command.split(), "--help").out.splitlines() if "Usage" in one]
    assert line.endswith(f" {usage}")


def test_without_a_command_there_is_help(ctxedit):
    answer = ctxedit()
    assert answer.code == 0 and all(command in answer.out for command in COMMANDS)
    assert "To begin: `ctxedit run CLIP" in answer.out
    answer = ctxedit("presets")
    assert answer.code == 0 and "cp" in answer.out


def test_version(ctxedit):
    from ctxedit import __version__

    assert ctxedit("--version").out == f"ctxedit {__version__}\n"
    module = subprocess.run(
        [sys.executable, "-m", "ctxedit", "--version"], capture_output=True, text=True, check=True
    )
    assert module.stdout == f"ctxedit {__version__}\n"


def test_a_closed_pipe_is_no_error():
    code = "import os,sys; from ctxedit.cli import main; r,w=os.pipe(); os.close(r); os.dup2(w,1); "
    code += "sys.exit(main(['presets','show','contextdiff']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
