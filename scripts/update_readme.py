"""Put the rendered tables into README.md, between ``<!-- table: NAME ... -->`` and ``<!-- end -->``.

The opening comment may go on with lines ``columns: A; B`` and ``methods: C; D``: only these columns, and rows of these methods.
"""

from __future__ import annotations

import re
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(<!-- table: (\w+)\n?(.*?)-->).*?<!-- end -->", re.DOTALL)


def updated(text: str, tables: Path) -> str:
    """``text`` with each marked place filled from the first table of ``tables/NAME.md``."""

    def fill(match: re.Match[str]) -> str:
        lines = (tables / f"{match[2]}.md").read_text("utf-8").splitlines()
        headers, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
        wanted = dict(line.split(": ", 1) for line in match[3].splitlines() if ": " in line)
        columns = (
            [headers.index(name) for name in wanted["columns"].split("; ")] if "columns" in wanted else range(len(headers))
        )
        if "methods" in wanted:
            method = headers.index("method")
            rows = [row for row in rows if row[method] in wanted["methods"].split("; ")]
        chosen = [[row[column] for column in columns] for row in rows]
        table = tabulate(chosen, [headers[column] for column in columns], tablefmt="github", disable_numparse=True)
        return f"{match[1]}\n{table}\n<!-- end -->"

    return PLACE.sub(fill, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text("utf-8"), ROOT / "results" / "tables"), "utf-8")
