"""Plain text tables: readable in a terminal, and by `awk` behind a pipe."""


def format_table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """Aligns columns, numbers to the right.

    Example:

    >>> print(format_table(("name", "size"), [("a", 5), ("bcd", 10)]))
    name  size
    a        5
    bcd     10
    """
    cells = [header, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _is_number(text):
    return text.lstrip("-").replace(",", "").replace(".", "").split(" ")[0].isdigit()
