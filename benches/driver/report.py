"""Medians, spreads, and how far inlay is from its goals."""

from statistics import median

from rows import RIVALS, ROWS


def value(row, sample):
    """A sample (nanoseconds an operation and a byte) in the row's unit."""
    if row.unit == "MB/s":
        return 1000 / sample["ns_per_byte"]
    return sample["ns_per_operation"] / 1000


def _time(row, sample):
    return sample["ns_per_byte"] if row.unit == "MB/s" else sample["ns_per_operation"]


def _times(samples, row, name, view):
    """One for each round: the median of its visit."""
    return [median(_time(row, s) for s in visit) for visit in samples[name][view][row.key]]


def _short(number):
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def verdicts(samples, view):
    """For each row: the ratios to the goal in every round, and whether their median meets it; and
    which rivals inlay is slower than."""
    out = {}
    for row in ROWS:
        ours = _times(samples, row, "inlay", view)
        entry = {"slower_than": [
            rival for rival in RIVALS
            if rival in samples and median(ours) > median(_times(samples, row, rival, view))
        ]}
        if row.goal and row.goal.of in samples:
            theirs = _times(samples, row, row.goal.of, view)
            # Round by round: what else the machine does in a round meets both.
            ratios = [row.goal.ratio(a, b) for a, b in zip(ours, theirs)]
            entry.update(goal=str(row.goal), ratios=ratios, met=row.goal.met(median(ratios)))
        out[row.key] = entry
    return out


def table(samples, view, names):
    """Lines of text."""
    judged = verdicts(samples, view)
    lines = [["", "", *names, "inlay's range", "ratio", "its range", "goal", ""]]
    for row in ROWS:
        line = [row.title, row.unit]
        for name in names:
            values = [median(value(row, s) for s in visit) for visit in samples[name][view][row.key]]
            line.append(_short(median(values)))
            if name == "inlay":
                span = f"{_short(min(values))}–{_short(max(values))}"
        entry = judged[row.key]
        ratios = entry.get("ratios")
        missed = [f"slower than {rival}" for rival in entry["slower_than"]]
        if ratios:
            if not entry["met"]:
                missed.insert(0, "MISSED")
            line += [span, f"{median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}", entry["goal"]]
        else:
            line += [span, "", "", ""]
        lines.append([*line, ", ".join(missed) or "met"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = {0, 1, len(widths) - 2, len(widths) - 1}
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
