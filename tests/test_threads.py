"""OpenMP's waiting is set before torch loads, on every way in; the user's own environment wins."""

import os
import subprocess
import sys

import pytest

from ctxedit import threads

OURS = {**threads.DEFAULTS}
#: Ends the process at the first import of torch and prints what its runtime would read.
AT_TORCH = """
import json, os, runpy, sys
class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            names = ("GOMP_", "KMP_", "OMP_")
            print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(names)}))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, AtTorch())
"""
WAYS_IN = {
    "main": "from ctxedit.cli import main; main(['env'])",
    "module": "sys.argv[1:] = ['env']; runpy.run_module('ctxedit', run_name='__main__', alter_sys=True)",
    "api": "import ctxedit; ctxedit.tune",
    "training": "import ctxedit.training.loop",
    "bench": "import ctxedit.bench.runner",
}


def seen_by_torch(way, **environment):
    import json

    plain = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", AT_TORCH + WAYS_IN[way]],
        capture_output=True, text=True, check=True, env={**plain, **environment},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS_IN)
def test_the_defaults_are_there_before_torch(way):
    assert seen_by_torch(way) == OURS


def test_the_users_own_values_win():
    assert seen_by_torch("main", GOMP_SPINCOUNT="7") == {**OURS, "GOMP_SPINCOUNT": "7"}
    assert seen_by_torch("main", KMP_BLOCKTIME="infinite") == {**OURS, "KMP_BLOCKTIME": "infinite"}
    # GOMP_SPINCOUNT and KMP_BLOCKTIME would override the standard's variable.
    assert seen_by_torch("main", OMP_WAIT_POLICY="active") == {"OMP_WAIT_POLICY": "active"}


def test_once_torch_is_loaded_nothing_is_pretended():
    import torch  # noqa: F401

    environment: dict[str, str] = {}
    assert threads.set_defaults(environment) is False and environment == {}


def test_env_tells_them(monkeypatch):
    from ctxedit.cli.env import gather

    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert gather()["cpu"]["GOMP_SPINCOUNT"] == "7"
