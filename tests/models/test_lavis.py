"""LAVIS's captioner with a stand-in worker of the same protocol; the real worker with a stand-in LAVIS."""

import ast
import math
import os
import stat
import sys
import time

import numpy as np
import pytest

from ctxedit.errors import ResourceError, WeightsError
from ctxedit.models import lavis, lavis_worker
from ctxedit.models.lavis import LavisCaptioner

# A caption names the image's size and mean, so that what arrived can be told from what was sent.
STAND_IN = """
import json, os, sys, time
from PIL import Image

def say(**reply):
    print(json.dumps(reply), flush=True)

{before}
say(type="hello", version={version}, python="3.8.20")
for line in sys.stdin:
    request = json.loads(line)
    if request["type"] == "shutdown":
        {at_shutdown}
        break
    if request["type"] == "load":
        {at_load}
        say(type="ready", device="cpu")
    if request["type"] == "caption":
        {at_caption}
        image = Image.open(request["path"])
        text = "%dx%d %s" % (image.width, image.height, image.getpixel((0, 0)))
        say(type="caption", id=request["id"], text=text)
"""
IMAGES = [np.full((4, 6, 3), 7, np.uint8), np.full((5, 3, 3), (1, 2, 3), np.uint8)]
SAID = ["6x4 (7, 7, 7)", "3x5 (1, 2, 3)"]


@pytest.fixture
def captioner(tmp_path):
    made = []

    def make(timeout=20.0, version=1, **parts):
        script = tmp_path / "worker.py"
        lines = {"before": "", "at_load": "pass", "at_caption": "pass", "at_shutdown": "pass"} | parts
        script.write_text(STAND_IN.format(version=version, **lines))
        made.append(LavisCaptioner(sys.executable, timeout=timeout, load_timeout=timeout, worker=script))
        return made[-1]

    yield make
    for one in made:
        one.close(at_once=True)


def test_captions_come_back_in_order_from_one_worker(captioner, tmp_path):
    log = tmp_path / "starts"
    one = captioner(before=f"open({str(log)!r}, 'a').write('x')")
    assert one.name == "lavis:blip2_opt/caption_coco_opt2.7b"
    assert one.caption(IMAGES) == SAID
    assert one.caption(IMAGES[::-1]) == SAID[::-1]
    assert one.propose(IMAGES) == pytest.approx(dict.fromkeys(SAID, -math.log(len(SAID))))
    assert log.read_text() == "x"


def test_the_model_asked_for_is_the_one_loaded(tmp_path):
    script = tmp_path / "worker.py"
    seen = tmp_path / "seen"
    load = f"open({str(seen)!r}, 'w').write(request['model'] + ' ' + request['model_type'])"
    script.write_text(
        STAND_IN.format(before="", version=1, at_load=load, at_caption="pass", at_shutdown="pass")
    )
    with LavisCaptioner(sys.executable, "blip2_t5", "caption_coco_flant5xl", worker=script) as one:
        one.caption(IMAGES[:1])
    assert seen.read_text() == "blip2_t5 caption_coco_flant5xl"


def test_closing_ends_the_worker_politely_and_the_next_caption_starts_another(captioner, tmp_path):
    log = tmp_path / "log"
    one = captioner(
        before=f"open({str(log)!r}, 'a').write('start ')",
        at_shutdown=f"open({str(log)!r}, 'a').write('end ')",
    )
    one.caption(IMAGES[:1])
    process = one._link._process
    one.close()
    assert process.returncode == 0
    assert log.read_text() == "start end "
    assert one.caption(IMAGES) == SAID
    assert log.read_text() == "start end start "


def test_a_worker_that_will_not_end_is_killed(captioner):
    one = captioner(at_shutdown="time.sleep(60)")
    one.caption(IMAGES[:1])
    process = one._link._process
    one.close(at_once=True)
    assert process.returncode is not None


def test_noise_on_stdout_is_passed_over(captioner):
    noise = (
        "print('Loading…', flush=True); print('[1, 2]', flush=True); say(type='caption', id=99, text='old')"
    )
    assert captioner(at_load=noise, at_caption=noise).caption(IMAGES) == SAID


def failing(one, error, match):
    with pytest.raises(error, match=match) as caught:
        one.caption(IMAGES)
    assert one._link is None, "the worker was left running"
    assert "\n" not in caught.value.message
    return caught.value


def test_nothing_but_noise_is_refused(captioner):
    one = captioner(before="for i in range(5000): print('not a message', i)\ntime.sleep(60)")
    failing(one, WeightsError, "not follow the protocol.*not a message")


def test_another_version_of_the_protocol_is_refused(captioner):
    failing(captioner(version=2), WeightsError, "version 2")


@pytest.mark.parametrize("stage", ["before", "at_load", "at_caption"])
def test_a_dying_worker_is_named_with_its_last_words(captioner, stage):
    one = captioner(**{stage: "print('no such thing', file=sys.stderr); sys.stderr.flush(); os._exit(3)"})
    failing(one, WeightsError, "exit 3.*no such thing")


def test_a_killed_worker_points_at_memory(captioner):
    error = failing(captioner(at_load="os.kill(os.getpid(), 9)"), ResourceError, "killed")
    assert "memory" in error.hint


@pytest.mark.parametrize("stage", ["before", "at_load", "at_caption"])
def test_a_worker_that_hangs_is_ended(captioner, stage):
    start = time.monotonic()
    one = captioner(timeout=1.5, **{stage: "time.sleep(60)"})
    failing(one, ResourceError, "within 1.5 seconds")
    assert time.monotonic() - start < 15


def test_much_on_stderr_blocks_nothing(captioner):
    assert captioner(at_caption="sys.stderr.write('x' * 400000)").caption(IMAGES) == SAID


@pytest.mark.parametrize(
    ("kind", "message", "error", "match"),
    [
        ("import", "ModuleNotFoundError: No module named 'lavis'", WeightsError, "cannot be imported"),
        ("load", "OSError: no such model", WeightsError, "no such model"),
        ("caption", "RuntimeError: CUDA out of memory.\nTried to…", ResourceError, "out of memory"),
    ],
)
def test_what_the_worker_reports_is_told(captioner, kind, message, error, match):
    one = captioner(at_load=f"say(type='error', kind='{kind}', message={message!r}); continue")
    assert failing(one, error, match).hint


def test_no_interpreter(tmp_path):
    for missing in (tmp_path / "python", "no-such-python-anywhere"):
        with pytest.raises(WeightsError, match="no Python interpreter") as caught:
            LavisCaptioner(missing)
        assert caught.value.hint == lavis.SETUP and "pip install salesforce-lavis" in lavis.SETUP


def test_a_file_that_is_no_interpreter(tmp_path):
    path = tmp_path / "python"
    path.write_bytes(b"\x7fELF not really")
    path.chmod(0o755)
    with pytest.raises(WeightsError, match="does not start"):
        LavisCaptioner(path).caption(IMAGES)


FAKE_LAVIS = """
import os
print('{"type": "error", "kind": "load", "message": "printed by a library"}', flush=True)
os.write(1, b'{"type": "error", "kind": "load", "message": "written by a C library"}\\n')

class Image:
    def __init__(self, text): self.text = text
    def unsqueeze(self, axis): return self
    def to(self, device): return self

class Model:
    def float(self): self.full = True; return self
    def generate(self, samples, use_nucleus_sampling, num_beams):
        assert self.full and not use_nucleus_sampling
        return ["  " + samples["image"].text + "\\n"]

def load_model_and_preprocess(name, model_type, is_eval, device):
    if model_type != "caption_coco_opt2.7b": raise ValueError("no " + model_type)
    return Model(), {"eval": lambda i: Image("%dx%d %s" % (i.width, i.height, i.getpixel((0, 0))))}, None
"""


@pytest.fixture
def other_python(tmp_path):
    """An interpreter with packages of its own: ours, started by a script that adds a folder."""
    site = tmp_path / "site"
    site.mkdir()
    python = tmp_path / "python3.8"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)

    def install():
        (site / "lavis").mkdir()
        (site / "lavis" / "__init__.py").write_text("")
        (site / "lavis" / "models.py").write_text(FAKE_LAVIS)
        (site / "torch.py").write_text(
            "class cuda:\n    @staticmethod\n    def is_available(): return False\n"
        )

    return python, install


def test_the_real_worker_with_a_stand_in_lavis(other_python):
    """Also: it finds LAVIS, not the lavis.py that lies beside it, and LAVIS's print does no harm."""
    python, install = other_python
    install()
    with LavisCaptioner(python, timeout=30, load_timeout=30) as one:
        assert one.caption(IMAGES) == SAID
    with LavisCaptioner(python, model_type="unknown", timeout=30, load_timeout=30) as one:
        failing(one, WeightsError, "ValueError: no unknown")


def test_the_real_worker_without_lavis(other_python):
    python, _ = other_python
    (python.parent / "site" / "torch.py").write_text("")
    error = failing(
        LavisCaptioner(python, timeout=30, load_timeout=30), WeightsError, "No module named 'lavis'"
    )
    assert error.hint == lavis.SETUP


def test_our_packages_do_not_reach_the_worker(captioner, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert captioner(before="assert 'PYTHONPATH' not in os.environ").caption(IMAGES) == SAID
    assert os.environ["PYTHONPATH"] == str(tmp_path)


def test_the_worker_is_python_3_8_and_speaks_our_version():
    with open(lavis_worker.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read(), feature_version=(3, 8))
    imports = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert imports == {"json", "os", "sys"}  # the rest waits until a model is asked for
    assert lavis_worker.VERSION == lavis.VERSION
