"""``python -m ctxedit.bundled.training [PART …]``: train the built-in models, all or some, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path

from ctxedit.bundled.training import recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ctxedit.bundled.training", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(recipe.ORDER), help="parts to train, in order")
    parser.add_argument("--state", type=Path, default=Path(".train"), help="where the resumable state lies")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parents[1] / "weights")
    args = parser.parse_args()
    for part in args.parts:
        chosen = recipe.load(recipe.RECIPES / f"{part}.toml")

        def report(row: dict[str, float], part: str = part) -> None:
            print(part, " ".join(f"{k}={v:.4g}" for k, v in row.items()), flush=True)

        recipe.run(chosen, args.state, args.weights, report)


if __name__ == "__main__":
    main()
