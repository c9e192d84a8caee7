"""Turns measurements into rows, and rows into a table in Markdown."""

import statistics

from benchmarks.case import Case


def summarize(name: str, case: Case, answers: dict) -> list[dict]:
    """A row for each side and variant that was measured.

    Args:
        name: str, of the case.
        case: a `Case`.
        answers: dict from `(variant, side)` to a list of what the worker measured.
    """
    rows = []
    for variant, divisor in case.variants.items():
        of_variant = [
            _row(name, case, variant, divisor, side, found)
            for (of, side), found in answers.items()
            if of == variant
        ]
        for row in of_variant:
            row["first"] = of_variant[0]["side"]
            for key in ("seconds", "cpu_seconds"):
                row[f"{key}_ratio"] = _ratio(row[key], of_variant[0][key])
        rows += of_variant
    return rows


def _row(name, case, variant, divisor, side, found):
    seconds = [answer["seconds"] for answer in found]
    return {
        "case": name,
        "about": case.about,
        "variant": variant,
        "side": side,
        "unit": case.unit,
        "divisor": divisor,
        "repeats": len(found),
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "all_seconds": seconds,
        "first_seconds": found[0]["first"],
        "cpu_seconds": statistics.median(answer["cpu_seconds"] for answer in found),
        # What it held at most until it was ready, then with the model loaded, before a
        # repetition, and at most in one.
        "preparing": found[0]["preparing"],
        "model": found[0]["model"],
        "idle": _most(answer["idle"] for answer in found),
        "peak": _most(answer["peak"] for answer in found),
        "facts": {key: _middle([a["facts"][key] for a in found]) for key in found[0]["facts"]},
    }


def _ratio(value, first):
    return value / first if first else None  # no time at all: less than the clock's step


def _most(values):
    return max((value for value in values if value is not None), default=None)


def _middle(values):
    if all(isinstance(value, int) for value in values):
        return statistics.median_low(values)
    return statistics.median(values)


def markdown(rows: list[dict], about: dict, missing: list[tuple[str, str, str]] = ()) -> str:
    """All cases' tables.

    Args:
        rows: what `summarize` returned.
        about: dict of `machine`, `versions`, `backend`, `date` and `command`.
        missing: tuples of a case, a side and why there is no row of it.
    """
    lines = [
        f"{about['date']}; {about['machine']}; ours on {about['backend']}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "",
        f"    {about['command']}",
    ]
    for name in dict.fromkeys([row["case"] for row in rows] + [name for name, _, _ in missing]):
        of_case = [row for row in rows if row["case"] == name]
        lines += _table(name, of_case) if of_case else ["", f"### {name}"]
        absent = [f"* {side}: {reason}" for case, side, reason in missing if case == name]
        lines += ["", *absent] if absent else []
    return "\n".join(lines) + "\n"


def _table(name, rows):
    # A ratio is named after the side that it is to; where that differs by variant, it is "first".
    firsts = {row["first"] for row in rows}
    first = f"`{firsts.pop()}`" if len(firsts) == 1 else "the first"
    unit = {"s": "seconds"}.get(rows[0]["unit"], rows[0]["unit"])
    return [
        "",
        f"### {name}: {rows[0]['about']}, median of {rows[0]['repeats']}",
        "",
        f"| | {unit} | fastest..slowest | times {first} | CPU {unit} | times {first} "
        "| first call, s | peak MB | preparing, MB | above model / idle, MB | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]


def _line(row):
    def time(key):
        return f"{row[key] * (1000 if row['unit'].startswith('ms') else 1) / row['divisor']:.3g}"

    def ratio(key):
        return "?" if row[key] is None else f"{row[key]:.2f}"

    def megabytes(key, base=None):
        if row[key] is None or (base and row[base] is None):
            return "?"
        return f"{(row[key] - (row[base] if base else 0)) / 1e6:,.0f}"

    cells = [
        ", ".join(filter(None, (row["side"], row["variant"]))),
        time("seconds"),
        f"{time('fastest')}..{time('slowest')}",
        ratio("seconds_ratio"),
        time("cpu_seconds"),
        ratio("cpu_seconds_ratio"),
        "?" if row["first_seconds"] is None else f"{row['first_seconds']:.3g}",
        megabytes("peak"),
        megabytes("preparing"),
        f"{megabytes('peak', 'model')} / {megabytes('peak', 'idle')}",
        ", ".join(f"{_number(value)} {key}" for key, value in row["facts"].items()),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
