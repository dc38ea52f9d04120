"""Turns the JSON of `pytest bench --benchmark-json=...` into tables and a plot, or compares two runs.

python -m bench.report.compare run.json                         tables, plots, small JSON: bench/results/<machine>/
python -m bench.report.compare run.json --page docs/performance.md   and the summary between that page's bench markers
python -m bench.report.compare --base old.json --head new.json  time of each row, old against new
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

BASELINE = "nflows eager"
BASELINES = (BASELINE, "before")  # the second: the library's own model, of the drop-in rows
OURS = ("flowkernels", "nflows accelerated", "accelerated")
RESULTS = Path(__file__).parents[1] / "results"
MARKERS = ("<!-- bench:begin -->", "<!-- bench:end -->")

# What may be kept. A list of what to drop would let the next host name through.
MACHINE_FIELDS = (
    "cpu", "cores", "threads", "isa", "last_level_cache_bytes", "system", "python", "commit", "torch", "nflows",
    "glasflow", "normflows", "zuko", "pytest-benchmark", "read_gbps", "copy_gbps", "read_gbps_at_end",
)  # fmt: skip
REFUSED_FIELDS = ("suite", "case", "op", "row", "reason")
ROW_FIELDS = (
    "suite", "case", "op", "row", "median_s", "iqr_s", "rounds", "iterations", "error", "graph_breaks", "least_bytes",
    "gbps", "share_of_read", "saved_bytes", "peak_bytes",
)  # fmt: skip

Row = dict[str, Any]


class Result(NamedTuple):
    """A run. `refused` are rows that have no time, because they computed something else, with the reason."""

    machine: dict[str, Any]
    rows: list[Row]
    refused: list[dict[str, str]]

    def groups(self) -> dict[tuple[str, str, str], dict[str, Row]]:
        """(suite, case, op) → row name → row, in the order of the run."""
        groups: dict[tuple[str, str, str], dict[str, Row]] = {}
        for row in self.rows:
            groups.setdefault((row["suite"], row["case"], row["op"]), {})[row["row"]] = row
        return groups


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _keep(values: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {name: _short(values[name]) for name in fields if values.get(name) is not None}


def load(path: Path) -> Result:
    """Reads pytest-benchmark's JSON or the small one that `save` writes.

    Raises:
        ValueError: the file is neither.
    """
    data = json.loads(path.read_text())
    if "benchmarks" in data:
        rows = []
        for bench in data["benchmarks"]:
            info, stats = bench["extra_info"], bench["stats"]
            if "beside" in info:  # the row that this one was timed against, turn by turn
                rows.append(info["beside"])
            if "row" in info:
                times = {"median_s": stats["median"], "iqr_s": stats["iqr"]}
                rows.append({**info, **times, "rounds": stats["rounds"], "iterations": stats["iterations"]})
        data = {"machine": data["machine_info"], "rows": rows, "refused": data.get("refused", [])}
    if not {"machine", "rows", "refused"} <= data.keys():
        raise ValueError(f"compare: {path.name} must be a JSON of pytest-benchmark or of compare.py, got neither")
    return Result(
        _keep(data["machine"], MACHINE_FIELDS),
        [_keep(row, ROW_FIELDS) for row in data["rows"]],
        [_keep(row, REFUSED_FIELDS) for row in data["refused"]],
    )


# ---- one figure as text ----


def seconds(value: float) -> str:
    """0.00512 → "5.12 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value * 1e9)} ns"


def times(value: float) -> str:
    """12.34 → "12.3×"."""
    return f"{_digits(value)}×"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{min(3, max(0, 2 - math.floor(math.log10(max(value, 1e-9)))))}f}"


def _megabytes(row: Row, field: str) -> str:
    return _digits(row[field] / 1e6) if field in row else "–"


def _bandwidth(row: Row) -> tuple[str, str]:
    gbps = f"{row['gbps']:.1f}" if "gbps" in row else "–"
    return gbps, f"{row['share_of_read']:.0%}" if "share_of_read" in row else "–"


# ---- tables ----


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]], text_columns: int) -> str:
    """A markdown table whose columns also line up in a terminal; numbers to the right."""
    widths = [max(3, *(len(line[i]) for line in (header, *rows))) for i in range(len(header))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (
            cell.ljust(w) if i < text_columns else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join("-" * w if i < text_columns else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(header), rule, *map(line, rows)])


def machine_line(machine: dict[str, Any]) -> str:
    """One line on where the figures come from."""
    parts = [f"{machine.get('cpu', 'unknown processor')}, {machine.get('threads')} threads, {machine.get('isa')}"]
    parts += [f"torch {machine.get('torch')}", f"read {machine['read_gbps']:.1f} GB/s, copy {machine['copy_gbps']:.1f}"]
    parts += [f"commit {machine['commit']}"] if machine.get("commit") else []
    return "; ".join(parts)


# Masked layers and samples come in many sizes; a page has room for a middle one, the worst, and one feature count.
_NOT_ON_PAGE = re.compile(
    r"masked layer, (?!\d+x512 to 512|512x64 to 512)|one layer, \w+, D=(?!64,)|actnorm"
    r"|affine coupling, 64x48x|LU 1x1 convolution, 64x96x|drop-in (?!.*, D=63, batch 4096)"
)


def _first(rows: dict[str, Row], names: Iterable[str]) -> Row | None:
    return next((rows[name] for name in names if name in rows), None)


def summary(result: Result, short: bool = False) -> str:
    """One line per group, ours against nflows and against the best compiled row; ``short`` as a page wants it."""
    lines = []
    for (suite, case, op), rows in result.groups().items():
        if short and _NOT_ON_PAGE.match(f"{suite}, {case}"):
            continue
        ours, base = _first(rows, OURS), _first(rows, BASELINES)
        if ours is None or base is None:
            continue
        compiled = min(
            (r for n, r in rows.items() if n.endswith("compiled")), key=lambda r: r["median_s"], default=None
        )
        t = ours["median_s"]
        lines.append(
            (
                f"{suite}, {case}",
                op,
                seconds(base["median_s"]),
                seconds(compiled["median_s"]) if compiled else "–",
                seconds(t),
                times(base["median_s"] / t),
                times(compiled["median_s"] / t) if compiled else "–",
                *_bandwidth(ours),
                _pair(base, ours, "saved_bytes"),
                _pair(base, ours, "peak_bytes"),
            )
        )
    header = (
        "case", "what", "nflows", "best compiled", "flowkernels", "vs nflows", "vs compiled", "GB/s", "of read",
        "saved for backward, MB", "peak, MB",
    )  # fmt: skip
    return _table(header, lines, text_columns=2)


def _pair(base: Row, ours: Row, field: str) -> str:
    return f"{_megabytes(base, field)} → {_megabytes(ours, field)}" if field in base and field in ours else "–"


def details(result: Result) -> str:
    """Every row of every group."""
    blocks = []
    header = (
        "row", "median", "± IQR/2", "vs nflows", "GB/s", "of read", "saved, MB", "peak, MB", "error", "graph breaks",
        "rounds",
    )  # fmt: skip
    for (suite, case, op), rows in result.groups().items():
        base = _first(rows, BASELINES)
        lines = [
            (
                name,
                seconds(row["median_s"]),
                f"{row['iqr_s'] / row['median_s'] / 2:.1%}",
                times(base["median_s"] / row["median_s"]) if base else "–",
                *_bandwidth(row),
                _megabytes(row, "saved_bytes"),
                _megabytes(row, "peak_bytes"),
                f"{row['error']:.0e}" if "error" in row else "–",
                str(row.get("graph_breaks", "–")),
                f"{row['rounds']} × {row['iterations']}",
            )
            for name, row in rows.items()
        ]
        here = [r for r in result.refused if (r["suite"], r["case"], r["op"]) == (suite, case, op)]
        notes = [f"Not timed: {r['reason']}." for r in here]
        blocks.append("\n\n".join([f"**{suite}, {case}, {op}**", _table(header, lines, text_columns=1), *notes]))
    return "\n\n".join(blocks)


# ---- results of one run ----


def machine_name(machine: dict[str, Any]) -> str:
    """A folder name such as `amd-epyc-avx2-2-threads`."""
    text = f"{machine.get('cpu', 'unknown')} {machine.get('isa', '')} {machine.get('threads')} threads".lower()
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*?ghz", " ", text)
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def save(result: Result, folder: Path) -> None:
    """Writes results.json (no raw rounds, no names of hosts or folders), table.md and a plot per suite."""
    from bench.report.plot import draw  # matplotlib is not needed for tables

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result._asdict(), ensure_ascii=False)
    text = re.sub(r'(?<=[\[}])(, |)(?=\{"suite")', lambda m: m[0].strip() + "\n", text)  # one row a line, for diffs
    (folder / "results.json").write_text(text + "\n")
    plots = "".join(f"![ratios]({name})\n\n" for name in draw(result, folder))
    text = f"{machine_line(result.machine)}\n\n{summary(result)}\n\n{plots}{details(result)}\n"
    (folder / "table.md").write_text(text)


def into_page(result: Result, page: Path) -> None:
    """Replaces what stands between the markers of a page.

    Raises:
        ValueError: the file lacks the markers.
    """
    text = page.read_text()
    if not all(marker in text for marker in MARKERS):
        raise ValueError(f"compare: {page.name} must hold {MARKERS[0]} and {MARKERS[1]}, got a file without them")
    before, rest = text.split(MARKERS[0], 1)
    after = rest.split(MARKERS[1], 1)[1]
    body = f"{summary(result, short=True)}\n\n{machine_line(result.machine)}; every row is in `bench/results`"
    page.write_text(f"{before}{MARKERS[0]}\n{body}\n{MARKERS[1]}{after}")


# ---- two runs ----


def against(base: Result, head: Result) -> str:
    """Time of base / time of head for every row that both have, and their geometric mean."""
    keys = ("suite", "case", "op", "row")
    old = {tuple(row[k] for k in keys): row for row in base.rows}
    lines, logs = [], []
    for row in head.rows:
        before = old.get(tuple(row[k] for k in keys))
        if before is None:
            continue
        ratio = before["median_s"] / row["median_s"]
        logs.append(math.log(ratio))
        noise = max(r["iqr_s"] / r["median_s"] for r in (before, row))
        verdict = "" if abs(ratio - 1) <= noise else ("faster" if ratio > 1 else "slower")
        label = f"{row['suite']}, {row['case']}, {row['op']}"
        lines.append((label, row["row"], seconds(before["median_s"]), seconds(row["median_s"]), times(ratio), verdict))
    if not lines:
        return "compare: the two runs have no row in common"
    text = _table(("case", "row", "base", "head", "base / head", "beyond noise"), lines, text_columns=2)
    drift = head.machine["read_gbps"] / base.machine["read_gbps"]
    text += f"\n\ngeometric mean {times(math.exp(sum(logs) / len(logs)))} over {len(logs)} rows; "
    return text + f"read bandwidth of head / base {drift:.2f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--name", help="folder under bench/results; default: from processor, instruction set, threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the folder goes")
    parser.add_argument("--page", type=Path, help="file with bench markers to put the summary in")
    parser.add_argument("--base", type=Path, help="JSON of the older run")
    parser.add_argument("--head", type=Path, help="JSON of the newer run")
    given = parser.parse_args(arguments)
    if (given.base is None) != (given.head is None) or (given.run is None) == (given.base is None):
        parser.error("give one run, or --base and --head")
    if given.run is None:
        print(against(load(given.base), load(given.head)))
        return
    result = load(given.run)
    save(result, given.out / (given.name or machine_name(result.machine)))
    if given.page:
        into_page(result, given.page)
    print(f"{machine_line(result.machine)}\n\n{summary(result)}")


if __name__ == "__main__":
    main()
