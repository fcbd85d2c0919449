"""The user study: which of two edits matches the text better, and which is more consistent over time.

The page does not contain the methods' names; ``key.json`` next to it maps edits to methods and is used to
count answers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ctxedit.bench import page, report
from ctxedit.bench.results import ResultRow
from ctxedit.bench.statistics import wilson
from ctxedit.bench.subject import REFERENCES, SOURCE
from ctxedit.bench.tables import markdown
from ctxedit.editing.paths import Input, Paths
from ctxedit.errors import ConfigError, InputError, OutputError
from ctxedit.files import read_json
from ctxedit.media.temporary import atomic
from ctxedit.runs import key_of

#: The questions about each pair: the key in the answers, and its name in the tables.
CRITERIA = {"text": "text alignment", "temporal": "temporal consistency"}
SIDES = ("a", "b")
FOLDER = "study"


@dataclass(frozen=True)
class Question:
    """One pair of edits of the same clip and target; ``a`` and ``b`` are the methods, in the order shown."""

    id: str
    clip: str
    target: str
    a: str
    b: str


@dataclass(frozen=True)
class Preference:
    """How often ``first`` was preferred to ``second``, as a share with Wilson's 95 % interval."""

    first: str
    second: str
    criterion: str
    wins: int
    count: int
    share: float
    low: float
    high: float


def draw_questions(
    rows: Sequence[ResultRow],
    count: int,
    seed: int,
    presets: Sequence[str] = (),
    against: str | None = None,
) -> list[Question]:
    """For each pair of methods, ``count`` edits that both have; sides and order are drawn from the seed.

    Args:
        rows: of a comparison.
        count: edits for each pair of methods; fewer if fewer exist.
        seed: for all random choices.
        presets: only these methods; all unless given.
        against: only pairs that this method is in.

    Raises:
        ConfigError: a method that is not in the comparison.
        InputError: no two methods have an edit in common.
    """
    good = [r for r in rows if r.error is None and r.video and r.method not in REFERENCES]
    known = list(dict.fromkeys(row.method for row in good))
    for name in [*presets, *([against] if against else [])]:
        if name not in known:
            raise ConfigError(f"{name!r} has no edits here", f"methods with edits: {', '.join(known)}")
    methods = [m for m in known if not presets or m in presets or m == against]
    rng = np.random.default_rng(seed)
    made: list[Question] = []
    for pair in combinations(methods, 2):
        if against is not None and against not in pair:
            continue
        first, second = ({(r.clip, r.target) for r in good if r.method == m} for m in pair)
        both = sorted(first & second)
        for index in sorted(rng.permutation(len(both))[:count]):
            a, b = pair if rng.random() < 0.5 else pair[::-1]
            clip, target = both[index]
            made.append(Question(key_of(seed, clip, target, sorted(pair)), clip, target, a, b))
    if not made:
        raise InputError("no two methods have an edit in common", "compare at least two with `ctxedit bench`")
    return [made[i] for i in rng.permutation(len(made))]


def write(
    out: Path, questions: Sequence[Question], rows: Sequence[ResultRow], overwrite: bool = False
) -> Path:
    """Write the study's page and its key into ``out/study``; returns the page.

    Raises:
        OutputError: another study is there and not ``overwrite``: its answers could no longer be decoded.
    """
    folder = out / FOLDER
    name = key_of([asdict(q) for q in questions])
    if not overwrite and (folder / "key.json").exists() and _key(out)["study"] != name:
        raise OutputError(
            f"{folder} holds another study",
            "pass -y to replace it; its answers can then no longer be counted",
        )
    by_edit = {(row.method, row.clip, row.target): row.video for row in rows if row.error is None}
    # Paths name the preset: every video gets a number instead.
    numbers: dict[str, int] = {}

    def number(method: str, question: Question) -> int | None:
        video = by_edit.get((method, question.clip, question.target))
        return None if video is None else numbers.setdefault(video, len(numbers))

    asked = [
        {
            "id": q.id, "target": q.target, "source": number(SOURCE, q),
            "a": number(q.a, q), "b": number(q.b, q),
        }
        for q in questions
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    data = {"study": name, "questions": asked, "videos": _anonymous(out, list(numbers), folder)}
    key = {"study": name, "questions": [asdict(q) for q in questions]}
    with atomic(folder / "key.json", True) as temporary:
        temporary.write_text(json.dumps(key, ensure_ascii=False, indent=1), encoding="utf-8")
    with atomic(folder / "index.html", True) as temporary:
        temporary.write_text(page.fill("study.html", data), encoding="utf-8")
    return folder / "index.html"


def _anonymous(out: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Videos by number: in the page, or as numbered copies next to it if they are too large."""
    files = [out / name for name in names]
    if gone := [file for file in files if not file.is_file()]:
        raise InputError(f"{gone[0]} is missing", "run the same `ctxedit bench` again")
    if sum(file.stat().st_size for file in files) <= page.INLINE_BYTES:
        return [page.data_url(file) for file in files]
    (folder / "videos").mkdir(exist_ok=True)
    for index, file in enumerate(files):
        shutil.copyfile(file, folder / "videos" / f"{index:04d}.mp4")
    return [f"videos/{index:04d}.mp4" for index in range(len(files))]


def count_answers(out: Path, files: Sequence[Path]) -> list[Preference]:
    """Preference rates of each pair of methods in the study, by criterion.

    Args:
        out: the bench's folder, with its study.
        files: what people downloaded from the page; one file per person.

    Raises:
        InputError: no study, a file that holds no answers to it, or the answers of one person twice.
    """
    folder = out / FOLDER
    written = tuple(("table", folder / f"preferences.{kind}") for kind in ("md", "json"))
    Paths(tuple(Input(file, "file of answers") for file in files), written).check()
    key = _key(out)
    questions = {q["id"]: Question(**q) for q in key["questions"]}
    raters: dict[str, Path] = {}
    wins: dict[tuple[str, str, str], list[int]] = {}
    for file in files:
        blob = _answers(file, key["study"], questions)
        if blob["rater"] in raters:
            raise InputError(
                f"{file} and {raters[blob['rater']]} are by the same rater", "leave one of them out"
            )
        raters[blob["rater"]] = file
        for answer in blob["answers"]:
            question = questions[answer["id"]]
            first, second = sorted((question.a, question.b))
            for criterion in CRITERIA:
                preferred = question.a if answer[criterion] == "a" else question.b
                wins.setdefault((first, second, criterion), []).append(int(preferred == first))
    return [
        Preference(*at, sum(found), len(found), sum(found) / len(found), *wilson(sum(found), len(found)))
        for at, found in sorted(wins.items())
    ]


def _key(out: Path) -> dict[str, Any]:
    path = out / FOLDER / "key.json"
    if not os.path.exists(path):
        raise InputError(f"{out} holds no study", "make one with `ctxedit bench study`")
    key = read_json(path, "key of a study")
    try:
        if not isinstance(key["study"], str):
            raise TypeError("study")
        for question in key["questions"]:
            if not all(isinstance(text, str) for text in asdict(Question(**question)).values()):
                raise TypeError("questions")
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is broken", "make the study again; the same seed gives the same") from error
    return dict(key)


def _answers(file: Path, study: str, questions: dict[str, Question]) -> dict[str, Any]:
    """A file's answers, each one checked."""
    hint = "it is the file that the study's page lets a person download"
    blob = read_json(file, "file of answers")
    try:
        good = isinstance(blob["rater"], str) and isinstance(blob["answers"], list)
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} holds no answers", hint) from error
    if not good or blob.get("study") != study:
        raise InputError(
            f"{file} holds no answers to this study",
            f"its page has changed since, or it is another file: {hint}",
        )
    seen: set[str] = set()
    for answer in blob["answers"]:
        known = isinstance(answer, dict) and isinstance(answer.get("id"), str) and answer["id"] in questions
        if not known or any(answer.get(criterion) not in SIDES for criterion in CRITERIA):
            raise InputError(f"{file}: {json.dumps(answer)[:80]} is not an answer", hint)
        if answer["id"] in seen:
            raise InputError(f"{file} answers {answer['id']} twice", hint)
        seen.add(answer["id"])
    return dict(blob)


def write_preferences(out: Path, found: Sequence[Preference], people: int) -> Path:
    """Write ``preferences.json`` and ``preferences.md`` next to the study; returns the latter."""
    folder = out / FOLDER
    rows = [["preferred", "to", *CRITERIA.values(), "answers"]]
    for first, second in dict.fromkeys((p.first, p.second) for p in found):
        own = {p.criterion: p for p in found if (p.first, p.second) == (first, second)}
        cells = [f"{p.share:.0%} [{p.low:.0%}, {p.high:.0%}]" for p in (own[c] for c in CRITERIA)]
        rows.append([first, second, *cells, str(own["text"].count)])
    said = f"{people} people; share of answers [95% interval, Wilson, every answer taken as independent].\n\n"
    with atomic(folder / "preferences.md", True) as temporary:
        temporary.write_text("# Preferences\n\n" + said + markdown(rows) + "\n", encoding="utf-8")
    with atomic(folder / "preferences.json", True) as temporary:
        temporary.write_text(json.dumps([asdict(p) for p in found], indent=1), encoding="utf-8")
    return folder / "preferences.md"


def rows_in(out: Path) -> list[ResultRow]:
    """The rows of a comparison's folder; raises InputError where there is none."""
    return report.edits_of(report.read(out))
