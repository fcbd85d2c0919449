"""``python -m ctxedit.bundled.training [PART …]``: train the built-in models, all or some, resumable.

With ``--check``: measure them on held-out combinations instead, and print the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ctxedit.bundled.training import recipe
from ctxedit.models.weights import BUILTIN_FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ctxedit.bundled.training", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(recipe.ORDER), help="parts to train, in order")
    parser.add_argument("--state", type=Path, default=Path(".train"), help="where the resumable state lies")
    parser.add_argument("--weights", type=Path, default=BUILTIN_FOLDER)
    parser.add_argument("--warm", action="store_true", help="with no state, start from the weights there are")
    parser.add_argument("--check", action="store_true", help="measure instead of training")
    parser.add_argument("--count", type=int, default=100, help="held-out scenes for --check")
    args = parser.parse_args()
    if args.check:
        print_check(args.count, args.weights)
        return
    for part in args.parts:
        chosen = recipe.load(recipe.RECIPES / f"{part}.toml")

        def report(row: dict[str, float], part: str = part) -> None:
            print(part, " ".join(f"{k}={v:.4g}" for k, v in row.items()), flush=True)

        recipe.run(chosen, args.state, args.weights, report, args.warm)


def print_check(count: int, weights: Path) -> None:
    """The check's table, as Markdown."""
    from ctxedit.bundled.training.check import check

    print("| part | figure | reached | wanted | on |\n|---|---|---|---|---|")
    for row in check(count, weights=weights):
        print(f"| {row.part} | {row.figure} | {row.value:.3g} | {row.wanted:g} | {row.count} |", flush=True)


if __name__ == "__main__":
    main()
