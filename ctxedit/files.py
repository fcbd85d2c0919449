"""Files that people name: what a name may be, and reading a file that may be anything.

Only regular files are opened: a FIFO would wait for ever, and ``/dev/zero`` would fill the memory.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxedit.errors import CtxeditError, InputError, OutputError, WeightsError, counted, nearest

#: Bytes of a TOML or JSON file that a person writes or downloads.
TEXT_LIMIT = 16 << 20
#: Bytes of a list of images, such as COCO's, whose largest takes 470 MB.
LIST_LIMIT = 4 << 30
#: Bytes of a JSON file of a model; the largest tokenizers take some 35 MB.
MODEL_JSON_LIMIT = 256 << 20
#: How deep tables and arrays may be nested. Settings need three levels.
_DEPTH = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: A whole number that may be larger than every float.
_LONG_NUMBER = re.compile(r"\d{309}")
_LINE_END = re.compile(r"\r\n|[\r\n]")
#: An escape of half a surrogate pair, which alone is no character.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NAME_MAX, _PATH_MAX = 255, 4096
#: Settings of a model and of its parts, which the libraries read without care for how deep they are nested.
_CONFIGS = (
    "config.json", "generation_config.json", "model_index.json", "preprocessor_config.json",
    "processor_config.json", "scheduler_config.json", "special_tokens_map.json", "tokenizer_config.json",
)  # fmt: skip


def printable(text: str | os.PathLike[str]) -> str:
    r"""A name as text that any UTF-8 stream takes: bytes that are not UTF-8 are shown as ``\xe9``."""
    name = os.fspath(text)
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, from an escape in JSON or YAML
        data = name.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    r"""Text whose control and direction characters are shown as escapes, such as ``\x1b``.

    Names of files, and what other people's files say, might else move the cursor or hide words of a command.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def expanded(name: str | os.PathLike[str]) -> Path:
    """A path with ``~`` expanded, where there is such a user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_utf8(text: str | os.PathLike[str]) -> bool:
    """Whether a name can be written as UTF-8. Other bytes in a name reach Python as lone surrogates."""
    try:
        os.fspath(text).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_utf8(path: Path, what: str, error: type[CtxeditError] = InputError) -> None:
    """Raise ``error`` for a path that is not UTF-8: run folders and JSON could not hold it."""
    whole = expanded(path).absolute()
    if not is_utf8(whole):
        raise error(f"the path of the {what} is not UTF-8: {printable(whole)}", "rename it, or its folder")


def status(path: Path, what: str, error: type[CtxeditError] = InputError) -> os.stat_result:
    """``stat`` of an input; raises ``error`` when it is missing or cannot be reached."""
    try:
        return path.stat()
    except FileNotFoundError as missing:
        if path.is_symlink():
            raise error(
                f"{printable(path)} is a link to {printable(os.readlink(path))}, which does not exist",
                f"check the path of the {what}",
            ) from missing
        raise error(
            f"{printable(path)} does not exist",
            f"{neighbour(path)}check the path of the {what}; a relative one is taken from the current folder",
        ) from missing
    except (OSError, ValueError) as refused:  # no permission, a link to itself, a name too long, a NUL in it
        raise error(
            f"{printable(path)[:400]} cannot be read: {reason(refused)}", f"check the path of the {what}"
        ) from refused


def neighbour(path: Path) -> str:
    """The beginning of a hint where nothing is at a path: which name of its folder may be meant, if any."""
    try:
        found = path.parent.iterdir()
        names = [one.name for one in found if is_utf8(one.name) and one.name != path.name]
    except (OSError, ValueError):
        return ""
    # Names are compared without suffixes, which many share; of two with one stem, the same suffix counts.
    names.sort(key=lambda name: Path(name).suffix == path.suffix)
    stems = {Path(name).stem: name for name in names}
    stem = nearest(path.stem, stems)
    return "" if stem is None else f"did you mean {str(path.parent / stems[stem])!r}? "


def check_file(
    path: Path, what: str, limit: int | None = None, error: type[CtxeditError] = InputError
) -> None:
    """Raise ``error`` unless ``path`` is a regular file, of at most ``limit`` bytes."""
    found = status(path, what, error)
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{printable(path)} is {_kind(found.st_mode)}", f"the {what} is read from a regular file")
    if limit is not None and found.st_size > limit:
        raise error(
            f"{printable(path)} has {found.st_size / 2**20:.0f} MiB, too much for a {what}",
            f"at most {limit / 2**20:.0f} MiB are read; is it the right file?",
        )


def is_inside(name: str) -> bool:
    """Whether a file name that a list gives stays below the list's folder: relative, without ``..``.

    Lists of images are downloaded; the images that they name are opened, and must be those of the data set.
    """
    parts = name.replace("\\", "/").split("/")
    return bool(name.strip()) and "\0" not in name and ".." not in parts and not Path(name).is_absolute()


def check_kind(path: Path, what: str, error: type[CtxeditError] = InputError) -> None:
    """Raise ``error`` for an existing path that is neither a regular file nor a folder."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it will report this
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise error(f"{printable(path)} is {_kind(mode)}", f"the {what} is read from regular files")


def read_bytes(
    path: Path, what: str, limit: int = TEXT_LIMIT, error: type[CtxeditError] = InputError
) -> bytes:
    """A regular file's contents; raises ``error``, see :func:`check_file`."""
    check_file(path, what, limit, error)
    try:
        with path.open("rb") as stream:
            return stream.read(limit)
    except OSError as refused:
        raise error(
            f"{printable(path)} cannot be read: {reason(refused)}", "check its permissions"
        ) from refused


def read_text(path: Path, what: str, limit: int = TEXT_LIMIT, error: type[CtxeditError] = InputError) -> str:
    """A regular UTF-8 file's text; raises ``error``, see :func:`check_file`."""
    try:
        return read_bytes(path, what, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        raise error(
            f"{printable(path)} is not UTF-8 (byte {broken.start})", f"save the {what} as UTF-8 text"
        ) from broken


def lines_of(text: str) -> list[str]:
    """The lines of a file that lists one thing a line.

    ``str.splitlines`` also divides at characters that captions and JSON may contain, U+2028 for example.
    """
    return _LINE_END.split(text)


def read_json(path: Path, what: str, limit: int = TEXT_LIMIT, error: type[CtxeditError] = InputError) -> Any:
    """A JSON file's value; raises ``error`` when it is none, or as :func:`parse_json`."""
    text = read_text(path, what, limit, error)
    try:
        return parse_json(text)
    except ValueError as broken:
        why = str(broken)[:160]
        said = f"{printable(path)} is not a valid {what}: {why}"
        raise error(said, "is it the right file, and whole?") from broken


def parse_json(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: the text is not JSON, it is nested without end, a whole number exceeds every float, or a
            text cannot be written as UTF-8.
    """
    # The hook is slow, and a file of COCO has tens of millions of numbers.
    hook = _whole_number if _LONG_NUMBER.search(text) else None
    try:
        found = json.loads(text, parse_int=hook)
        check_depth(found)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a character: {ascii(error.object[error.start])[1:-1]}") from error
    return found


def _whole_number(digits: str) -> int:
    number = int(digits)
    try:
        float(number)
    except OverflowError as error:
        raise ValueError(f"a number of {len(digits)} digits is too large") from error
    return number


def check_model_files(folder: Path, parts: Sequence[str] = ()) -> None:
    """Raise WeightsError for a file of a model that is not regular, or JSON too large for what it should be.

    The libraries that load models would open any kind of file.

    Args:
        folder: of the model; its own files are checked, and those of ``parts``.
        parts: folders inside it.
    """
    for place in (folder, *(folder / part for part in parts)):
        try:
            found = sorted(path for path in place.iterdir() if not path.is_dir())
        except OSError as error:
            raise WeightsError(f"{place} cannot be read: {reason(error)}", "check its permissions") from error
        for path in found:
            limit = MODEL_JSON_LIMIT if path.suffix in (".json", ".txt") else None
            if path.name in _CONFIGS:
                read_json(path, "model's settings file", TEXT_LIMIT, WeightsError)
            if path.suffix in (".json", ".txt", ".model", ".safetensors"):
                check_file(path, "model's file", limit, WeightsError)


def check_depth(value: Any) -> None:
    """Raise RecursionError for tables and arrays nested more than 64 deep."""
    level = [value]
    for _ in range(_DEPTH):
        # By identity: aliases of YAML share what they name, so that a few lines may stand for millions.
        inside = {
            id(inner): inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        }
        level = list(inside.values())
        if not level:
            return
    raise RecursionError(f"nested more than {_DEPTH} deep")


def check_name_fits(path: Path, what: str = "output") -> None:
    """Raise OutputError for a path that the disk cannot hold; limits are in bytes, not in letters."""
    whole = Path(os.path.abspath(expanded(path)))
    name_max, path_max = _limits(whole)
    for part in whole.parts:
        if (size := len(os.fsencode(part))) > name_max:
            raise OutputError(
                f"the name of the {what} is too long: {size} bytes, this disk takes {name_max}: "
                f"{printable(part)[:40]}…",
                f"choose a name that is {counted(size - name_max, 'byte')} shorter or more",
            )
    if (size := len(os.fsencode(whole))) >= path_max:
        raise OutputError(
            f"the path of the {what} is too long: {size} bytes, the system takes {path_max - 1}",
            "choose a place with a shorter path",
        )


def cut(text: str, size: int) -> str:
    """The beginning of a name, at most ``size`` bytes long, cut between characters."""
    return os.fsencode(text)[:size].decode("utf-8", "ignore")


def reason(error: BaseException) -> str:
    """Why the system refused, in a few lower-case words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)[:1].lower() + str(text)[1:160]


def _limits(path: Path) -> tuple[int, int]:
    """(NAME_MAX, PATH_MAX) of the disk that holds a path."""
    for parent in path.parents:
        try:
            return os.pathconf(parent, "PC_NAME_MAX"), os.pathconf(parent, "PC_PATH_MAX")
        except (AttributeError, ValueError):  # Windows
            break
        except OSError:  # not there yet
            continue
    return _NAME_MAX, _PATH_MAX


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "not a file")


def process_folder() -> Path:
    """A fresh temporary folder, deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ctxedit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
