"""Pages about systems and the family tree, made from recipes, docstrings and evidence: ``python -m limbeck.docs``."""

from pathlib import Path

__all__ = ["build", "write"]


def build() -> dict[str, str]:
    """Every page by its path below docs/; the same bytes each time.

    Raises:
        BadFile: a family tree or a record of evidence that is damaged or contradicts the code.
    """
    from limbeck.docs import drawing, family, pages

    found, tree = pages.entries(), family.load()
    links = pages.links(found)
    made = {f"systems/{entry.system.id}.md": pages.page(entry, found, tree, links) for entry in found}
    return {
        **made,
        "systems/README.md": pages.index(found),
        "family-tree.md": family.page(tree, {name: f"systems/{target}" for name, target in links.items()}),
        "family-tree.svg": drawing.svg(tree),
    }


def write(folder: Path) -> list[Path]:
    """Writes all pages into a folder, takes away those of systems that have none any more, and returns what changed."""
    made = {folder / name: text for name, text in build().items()}
    gone = [path for path in (folder / "systems").glob("*.md") if path not in made]
    changed = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in gone:
        path.unlink()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8", newline="\n")
    return [*gone, *changed]
