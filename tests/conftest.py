"""Shared by every test: no hub, a tiny Stable Diffusion folder with random weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# The networks here are tiny: a second thread only waits. Two processes of two threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Defaults that cost time or depend on the processor; the tests of each take them out or name the value.
os.environ["CTXEDIT_UPSCALE_SCALE"] = "1"
os.environ["CTXEDIT_DTYPE"] = "float32"
os.environ["CTXEDIT_ROUND_TRIP"] = "off"

import gc
from pathlib import Path

import pytest
from tiny import make_controlnet, make_stable_diffusion


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One a core for the whole suite; none for tests that are named: starting workers takes seconds."""
    named = config.args_source == config.ArgsSource.ARGS
    if named or config.option.keyword or config.option.collectonly or config.option.usepdb:
        return 0
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


#: The files that take longest. Workers take these first, so that none starts one when little else is left.
LONGEST = (
    "test_builtin.py", "training/test_training.py", "training/test_check.py", "cli/test_cli_long.py",
    "cli/test_cli_time.py", "cli/test_cli_terminal.py", "cli/test_cli_run.py", "cli/test_cli_round_trip.py",
    "cli/test_cli_storage.py", "trial/test_trial.py", "cli/test_cli_bench.py", "speed/test_bench_speed.py",
    "cli/test_cli_text_to_image.py", "cli/test_cli_show.py", "cli/test_cli_batch.py", "test_pipeline.py",
    "speed/test_bench_speed_cuda.py", "cli/test_cli_sizes.py", "bench/test_bench_runner.py",
    "cli/test_cli_upscale.py", "cli/test_cli_train.py", "test_own_method.py", "test_notebook.py",
    "inspection/test_tuning_curve.py", "cli/test_cli_identity.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; ``--no-loadscope-reorder`` keeps xdist from sorting by number of tests."""
    tests = Path(__file__).parent
    if missing := [name for name in LONGEST if not (tests / name).is_file()]:
        raise pytest.UsageError(f"LONGEST in {__file__} names no file: {', '.join(missing)}")
    rank = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def a_processor_without_bfloat16():
    """Settings that are loaded without variables get float32 on every machine, too."""
    from ctxedit.models import device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "processor_flags", frozenset)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Files of tests need not survive a power cut, and waiting for the disk takes a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Take what is alive now, mostly imported modules, out of the garbage collections of this file's tests.

    Each full collection would walk through half a million objects of torch, diffusers and transformers: a
    tenth of the suite's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1.x folder (noise head)."""
    return make_stable_diffusion(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="session")
def stable_diffusion_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 2.x folder (velocity head)."""
    return make_stable_diffusion(tmp_path_factory.mktemp("sd2"), "v_prediction")


@pytest.fixture(scope="session")
def controlnet(tmp_path_factory: pytest.TempPathFactory, stable_diffusion: Path) -> Path:
    """A tiny random ControlNet folder for ``stable_diffusion``, which changes what the denoiser says."""
    return make_controlnet(tmp_path_factory.mktemp("control") / "net", stable_diffusion)


@pytest.fixture()
def backbone(stable_diffusion: Path):
    """The tiny checkpoint, loaded in float64 so that equalities are exact."""
    import torch

    from ctxedit.models.backbones import load_backbone

    return load_backbone(str(stable_diffusion), torch.device("cpu"), torch.float64)
