"""``ctxedit batch --ray`` on a cluster that loses a machine gives what one process gives."""

import json
import re
import threading
import time

import pytest
from asking import call

from ctxedit.media.write import write_clip

TARGETS = ("a panda walking on the beach", "a tiger walking in the snow")
PROMPT = "a tiger walking on the beach"
SMALL = ("--frames", 3, "--stride", 1, "--steps", 4, "--tune-steps", 4)


@pytest.fixture()
def listed(tmp_path):
    """Six drawn clips."""
    from fractions import Fraction

    import numpy as np

    from ctxedit.synthetic import scenes

    for number in range(6):
        scene = scenes.draw_scene(np.random.default_rng(number), pairs=0.0)
        write_clip(tmp_path / "clips" / f"{number}.mp4", scenes.render(scene, 3, 64)[0], Fraction(8))
    return tmp_path


@pytest.mark.slow
def test_a_list_is_finished_when_a_machine_is_lost_and_nothing_is_done_twice(listed, ray_cluster):
    shared, alone = listed / "shared", listed / "alone"
    second = ray_cluster.add()
    results = shared / "results.jsonl"

    def lose():
        while not results.exists() or results.read_text().count("contextdiff") < 4:
            time.sleep(0.1)
        ray_cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    arguments = ("batch", listed / "clips", *TARGETS, "--prompt", PROMPT, *SMALL)
    # The machines of this cluster each count the whole memory of the real one; little is reserved.
    answer = call(*arguments, "-o", shared, "--ray", ray_cluster.address, "--memory", 0.1, "--json")
    assert answer.code == 0, answer.err
    thread.join(1)
    assert not thread.is_alive(), "the machine was lost before the end"
    assert len(answer.table["edits"]) == 12 and answer.table["failed"] == []
    # Any two: a worker may be lost with its machine before it reports.
    assert len(set(re.findall(r"worker (\d+) on", answer.err))) >= 2, answer.err
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys)) == 24, "one row for each edit and for each source"
    assert call(*arguments, "-o", alone, "--threads", 1).code == 0
    videos = [{p.name: p.read_bytes() for p in (out / "edits").iterdir()} for out in (shared, alone)]
    assert videos[0] == videos[1] and len(videos[0]) == 12
    figures = [
        [one["figures"] for one in json.loads((out / "report.json").read_text())["edits"]]
        for out in (shared, alone)
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_workers_deliver_to_a_url(listed, ray_cluster, monkeypatch):
    """Each one its own videos: what is there is what one process leaves in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(listed / "cache"))
    clips = listed / "clips"
    for extra in ("2", "3", "4", "5"):
        (clips / f"{extra}.mp4").unlink()
    lines = [f"file://{clips}/{number}.mp4,{PROMPT},{TARGETS[0]}" for number in (0, 1)]
    (listed / "list.csv").write_text("\n".join(["path,prompt,target", *lines]) + "\n")
    arguments = ("batch", listed / "list.csv", *SMALL)
    there = ("-o", f"file://{listed}/there", "--ray", ray_cluster.address, "--memory", 0.1)
    answer = call(*arguments, *there, "--json")
    assert answer.code == 0, answer.err
    assert all(one["video"].startswith(f"file://{listed}/there/edits/") for one in answer.table["edits"])
    assert call(*arguments, "-o", listed / "alone", "--threads", 1).code == 0
    videos = [
        {p.name: p.read_bytes() for p in (listed / out / "edits").iterdir()} for out in ("there", "alone")
    ]
    assert videos[0] == videos[1] and len(videos[0]) == 2
    assert {p.name for p in (listed / "there").iterdir()} >= {"report.json", "report.md", "index.html"}
    assert not (listed / "there" / "runs").exists()
