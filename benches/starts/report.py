"""Numbers as text: medians with their ranges, and tables in Markdown."""

from statistics import median

NOTHING = "–"


def short(number):
    """Three digits that mean something."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def spread(values, scale=1):
    """The median, and from the least to the most."""
    if not values:
        return NOTHING
    values = [value / scale for value in values]
    if len(values) == 1:
        return short(values[0])
    return f"{short(median(values))} ({short(min(values))}–{short(max(values))})"


def percentile(values, share):
    """The least value that at least this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 100)
    return ordered[max(int(rank), 1) - 1]


def table(head, rows):
    """Lines of a Markdown table whose columns are also lined up for eyes. Text is left, numbers right."""
    cells = [head, *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    left = [not any(row[i][:1].isdigit() for row in rows) for i in range(len(head))]

    def line(values):
        padded = (v.ljust(w) if l else v.rjust(w) for v, w, l in zip(values, widths, left))
        return f"| {' | '.join(padded)} |"

    rule = (("-" * w) if l else "-" * (w - 1) + ":" for w, l in zip(widths, left))
    return [line(head), f"| {' | '.join(rule)} |", *map(line, rows)]
