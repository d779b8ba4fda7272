"""``python -m limbeck.docs``: writes the pages into docs/, or into a folder that is given."""

import sys
from pathlib import Path

from limbeck.docs import write
from limbeck.docs.family import ROOT
from limbeck.errors import LimbeckError


def main(argv: list[str]) -> int:
    """Writes the pages and says which changed; exit code 2 where the material is at fault."""
    try:
        changed = write(Path(argv[0]) if argv else ROOT / "docs")
    except LimbeckError as error:
        print(f"limbeck.docs: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, changed)) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
