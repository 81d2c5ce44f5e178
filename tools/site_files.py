"""What the site has from outside docs/: the README as its first page, and files linked to."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages from outside docs/, and their names in the site."""
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?(?: \"[^\"]*\")?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of PAGES, and under files/ whatever a page links to outside docs/."""
    docs = Path(config["docs_dir"])
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=with_links(text, ROOT)))
    pages = [ROOT / source for source in PAGES] + sorted(docs.glob("*.md"))
    for place in sorted({place for page in pages for place in _outside(page, docs)}):
        name = f"files/{place.relative_to(ROOT)}"
        files.append(File.generated(config, name, abs_src_path=str(place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page of docs/ with its links as the site has them; PAGES have been through this already."""
    return markdown if page.file.generated_by else with_links(markdown, ROOT / "docs")


def with_links(text: str, folder: Path) -> str:
    """The text with links as the site has them; `folder` is what they were relative to."""

    def moved(found: re.Match[str]) -> str:
        place = Path(os.path.normpath(folder / found[2])).relative_to(ROOT)
        inside = place.parts[0] == "docs"
        name = "/".join(place.parts[1:]) if inside else PAGES.get(str(place), f"files/{place}")
        return found[1] + name + found[3]

    return LINK.sub(moved, text)


def _outside(page: Path, docs: Path) -> set[Path]:
    """The files outside docs/ that a page links to."""
    found = LINK.findall(page.read_text(encoding="utf-8"))
    places = {Path(os.path.normpath(page.parent / target)) for _, target, _ in found}
    return {p for p in places if docs not in p.parents and str(p.relative_to(ROOT)) not in PAGES}
