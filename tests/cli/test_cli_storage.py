"""``ctxedit batch`` with results and clips behind fsspec URLs: delivered, resumed elsewhere, refused."""

import json
import shutil

import fsspec
import pytest
from asking import TARGET, call
from fsspec.registry import known_implementations

PROMPT, SNOW = "a tiger walking on the beach", "a tiger walking in the snow"
SMALL = ("--frames", 3, "--stride", 1, "--steps", 2, "--tune-steps", 1, "--threads", 1)
URL = "memory://results/batch"


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The cache folder of each machine that works here."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def machine(monkeypatch, caches):
    """Be on a machine, by its name."""

    def be(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(caches / name))
        return caches / name / "ctxedit"

    be("first")
    return be


@pytest.fixture(scope="module")
def listed(clip, tmp_path_factory):
    """A list with a clip in memory and a broken one."""
    folder = tmp_path_factory.mktemp("stored")
    fsspec.filesystem("memory").put_file(str(clip), "/clips/tiger.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines = [{"path": "memory://clips/tiger.mp4", "prompt": PROMPT, "targets": [TARGET, SNOW]}]
    lines.append({"path": "broken.mp4", "prompt": PROMPT, "target": SNOW})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "list.jsonl"


@pytest.fixture(scope="module")
def done(listed, caches):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(caches / "first"))
        yield call("batch", listed, *SMALL, "-o", URL, "--json")


def stored():
    fs = fsspec.filesystem("memory")
    return {name.removeprefix("/results/batch/"): fs.cat_file(name) for name in fs.find("/results/batch")}


def test_everything_for_people_is_delivered(done):
    assert done.code == 1 and "1 of 3 edits failed" in done.err, done.err
    files = stored()
    videos = sorted(name for name in files if name.startswith("edits/"))
    assert len(videos) == 2 and all(name.startswith("edits/tiger-a-") for name in videos)
    assert sorted(one["video"] for one in done.table["edits"]) == [f"{URL}/{name}" for name in videos]
    assert done.table["report"] == f"{URL}/report.json" and f"{URL}/report.md" in done.err
    others = {name for name in files if "/" not in name}
    assert others == {"results.jsonl", "report.json", "report.md", "index.html"}
    assert "data:video/mp4" in files["index.html"].decode()
    assert [one["clip"] for one in json.loads(files["report.json"])["failed"]] == ["broken"]


def test_another_machine_goes_on_where_the_first_one_stopped(done, listed, machine, ctxedit, no_weights):
    before = stored()
    machine("second")
    plan = ctxedit("batch", listed, *SMALL, "-o", URL, "--dry-run")
    assert plan.code == 0 and "3, 2 of them done" in plan.out
    # The one that is left fails again, before any weight; what was done is fetched for the page.
    answer = ctxedit("batch", listed, *SMALL, "-o", f"{URL}/")
    assert answer.code == 1 and "3 edits, 2 of them done before" in answer.err
    after = stored()
    assert {n: b for n, b in after.items() if n.startswith("edits/")} == {
        n: b for n, b in before.items() if n.startswith("edits/")
    }
    assert after["index.html"].count(b"data:video/mp4") == before["index.html"].count(b"data:video/mp4")


def test_the_list_itself_may_be_there(done, listed, ctxedit, no_weights):
    """Its relative paths are relative to its URL."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/clips/list.csv", f"path,prompt,target\ntiger.mp4,{PROMPT},{TARGET}\n".encode())
    answer = ctxedit("batch", "memory://clips/list.csv", *SMALL, "-o", URL, "--json")
    assert answer.code == 0 and "1 edit, 1 of them done before" in answer.err, answer.err
    assert [one["target"] for one in answer.table["edits"]] == [TARGET]


def test_what_is_damaged_in_the_store_is_put_there_again(done, listed, ctxedit, no_weights):
    fs, before = fsspec.filesystem("memory"), stored()
    video = next(name for name in before if name.startswith("edits/"))
    fs.pipe_file(f"/results/batch/{video}", b"cut")
    fs.rm_file("/results/batch/results.jsonl")
    answer = ctxedit("batch", listed, *SMALL, "-o", URL)
    assert answer.code == 1 and "2 of them done before" in answer.err
    assert stored()[video] == before[video] and "results.jsonl" in stored()


def test_a_folder_url_gives_what_a_folder_gives(done, listed, clip, tmp_path, ctxedit):
    """Worker processes deliver themselves; the bits are those of one process."""
    shutil.copy(clip, tmp_path / "tiger.mp4")
    table = {"path": f"file://{tmp_path}/tiger.mp4", "prompt": PROMPT, "targets": [TARGET, SNOW]}
    other = {**table, "name": "again", "targets": [SNOW]}
    (tmp_path / "list.jsonl").write_text(json.dumps(table) + "\n" + json.dumps(other) + "\n")
    url = f"file://{tmp_path}/out"
    answer = ctxedit("batch", tmp_path / "list.jsonl", *SMALL, "-o", url, "--workers", 2)
    assert answer.code == 0, answer.err
    videos = {path.name: path.read_bytes() for path in (tmp_path / "out" / "edits").iterdir()}
    assert len(videos) == 3
    one = {name.removeprefix("edits/"): b for name, b in stored().items() if name.startswith("edits/")}
    assert sorted(map(hash, one.values())) == sorted(hash(videos[n]) for n in videos if "again" not in n)
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / ".workers").exists()


def test_workers_do_not_share_the_memory_of_this_process(listed, ctxedit, tmp_path):
    answer = ctxedit("batch", listed, *SMALL, "-o", "memory://other", "--workers", 2)
    assert answer.code == 6 and "cannot read memory://other" in answer.err
    assert answer.err.count("\nerror: ") == 1 and "hint: choose --out on storage" in answer.err


@pytest.mark.parametrize(
    ("out", "path", "code", "said"),
    [
        ("nosuch://bucket/x", "tiger.mp4", 2, "nosuch://bucket/x: Protocol not known"),
        ("needs://bucket/x", "tiger.mp4", 2, "needs://bucket/x: a package is missing"),
        (URL, "needs://bucket/a.mp4", 2, "needs://bucket/a.mp4: a package is missing"),
        (URL, "memory://clips/none.mp4", 3, "memory://clips/none.mp4 does not exist"),
        (URL, "memory://clips", 3, "memory://clips is a folder"),
    ],
)
def test_refusals_come_before_the_work(
    listed, clip, tmp_path, ctxedit, no_weights, monkeypatch, out, path, code, said
):
    needs = {"class": "a_package_that_is_not.FS", "err": "Install that-package to access needs://"}
    monkeypatch.setitem(known_implementations, "needs", needs)
    shutil.copy(clip, tmp_path / "tiger.mp4")
    (tmp_path / "list.csv").write_text(f"path,target\n{path},a panda\n")
    before = stored()
    answer = ctxedit("batch", tmp_path / "list.csv", "-o", out)
    assert answer.code == code and said in answer.err, answer.err
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 2
    if "package" in said:
        assert "hint: Install that-package" in answer.err
    assert stored() == before


def test_a_store_that_refuses_ends_the_run_and_nothing_is_lost(listed, ctxedit, monkeypatch, machine):
    """A disk that is full, no permission, a lost connection: one line; the rows are kept here."""
    from fsspec.implementations.memory import MemoryFileSystem

    real = MemoryFileSystem.put_file

    def refuse(self, local, remote, **kwargs):
        if "/edits/" in remote:
            raise PermissionError("no writing here")
        return real(self, local, remote, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", refuse)
        answer = ctxedit("batch", listed, *SMALL, "-o", "memory://refusing")
    assert answer.code == 6 and "cannot be written: no writing here" in answer.err, answer.err
    assert ctxedit("batch", listed, *SMALL, "-o", "memory://refusing").code == 1
