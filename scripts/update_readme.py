"""Put the rendered tables into README.md, between ``<!-- table: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def updated(text: str, tables: Path) -> str:
    """``text`` with each marked place filled by the first table of ``tables/NAME.md``."""

    def fill(match: re.Match[str]) -> str:
        lines = (tables / f"{match[1]}.md").read_text("utf-8").splitlines()
        table = "\n".join(line for line in lines if line.startswith("|"))
        return f"<!-- table: {match[1]} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text("utf-8"), ROOT / "results" / "tables"), "utf-8")
