"""Drawings as pixels, and whether this machine can write Chinese into them."""

import tempfile
from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.study.figures import for_paper
from suri.study.packages import package

PIXELS_PER_INCH = 130
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Serif CJK SC", "Source Han Sans SC", "Source Han Serif SC",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimSun", "SimHei",
    "PingFang SC", "Songti SC", "Heiti SC", "Noto Sans SC",
)  # fmt: skip


def typst() -> Any:
    """The typesetter; raises UsageError where it is not installed."""
    return package("typst", "PDF and Word reports need")


def png_of(svg: str) -> bytes:
    """A figure with the colours of paper, as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "figure.svg").write_text(for_paper(svg), encoding="utf-8")
        source = Path(folder, "page.typ")
        source.write_text(
            '#set page(width: auto, height: auto, margin: 2pt)\n#image("figure.svg")\n',
            encoding="utf-8",
        )
        picture: bytes = typst().compile(source, format="png", ppi=PIXELS_PER_INCH)
    return picture


def chinese_font() -> str:
    """A font of this machine that has Chinese characters; raises UsageError where there is none."""
    families = set(typst().Fonts().families())
    for name in CHINESE_FONTS:
        if name in families:
            return name
    raise UsageError(
        "this machine has no font with Chinese characters",
        found="none of " + ", ".join(CHINESE_FONTS[:4]) + ", ...",
        do="apt-get install fonts-noto-cjk (or fonts-wqy-microhei), then write the report again",
    )
