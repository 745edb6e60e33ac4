"""What a run leaves behind: raw.csv, manifest.toml, summary.md and the plots."""

import collections
import csv
import html
import json
import math
import statistics

COLUMNS = [
    *("round", "order", "loop", "protocol", "clients", "rate", "contender", "status", "note"),
    *("transactions", "failed", "window_s", "tps"),
    *("latency_avg_us", "latency_p50_us", "latency_p90_us", "latency_p99_us", "latency_p999_us", "latency_max_us"),
    *("lag_avg_us", "lag_p99_us"),
    *("cpu_us_per_txn", "cpu_user_us_per_txn", "cpu_system_us_per_txn", "cores_used"),
    *("switches_voluntary_per_txn", "switches_forced_per_txn", "resident_kib"),
]


def write_csv(path, rows):
    with open(path, "w", newline="") as sink:
        writer = csv.DictWriter(sink, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def write_toml(path, tables):
    """Tables of strings, numbers, booleans and lists of these. A JSON string is a TOML basic string."""
    with open(path, "w") as sink:
        for name, table in tables.items():
            sink.write(f"[{name}]\n")
            for key, value in table.items():
                sink.write(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
            sink.write("\n")


class Results:
    """The good rows, grouped: case -> contender -> round -> numbers."""

    def __init__(self, rows):
        self.cases = collections.defaultdict(lambda: collections.defaultdict(dict))
        self.contenders = []
        self.notes = []
        for row in rows:
            if row["contender"] not in self.contenders:
                self.contenders.append(row["contender"])
            key = (row["loop"], row["protocol"], row["clients"], row["rate"])
            if row["status"] == "ok":
                self.cases[key][row["contender"]][row["round"]] = row
            elif (note := f"{row['contender']}, {row['protocol']}: {row['status']}: {row['note']}") not in self.notes:
                self.notes.append(note)

    def values(self, key, contender, column):
        return [row[column] for row in self.cases[key][contender].values() if row.get(column, "") != ""]

    def ratios(self, key, contender, rival, column):
        """Ratios of the two within each round, so that what disturbs a whole round cancels out."""
        ours, theirs = self.cases[key].get(contender, {}), self.cases[key].get(rival, {})
        return [
            row[column] / theirs[number][column]
            for number, row in ours.items()
            if number in theirs and row.get(column) and theirs[number].get(column)
        ]


def spread(values, digits=0, scale=1.0):
    """`median (lowest–highest)`."""
    if not values:
        return "–"
    shown = [f"{value * scale:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def write_summary(path, rows, manifest):
    results = Results(rows)
    run = manifest["run"]
    with open(path, "w") as sink:
        sink.write(f"# Load test of {run['date']}, commit {run['commit']}\n\n")
        sink.write(
            f"{run['rounds']} rounds of {run['seconds']} s, contenders interleaved; pgbench select-only, scale"
            f" {run['scale']}, pool_size {run['pool_size']}. {manifest['machine']['cpu']}, {manifest['machine']['cores']}"
            f" cores shared with pgbench and PostgreSQL, kernel {manifest['machine']['kernel']}.\n\n"
            "Every cell: median (lowest–highest) over the rounds. Ratios are taken within each round. CPU is the pooler's"
            " alone. `manifest.toml` has versions and configurations, `raw.csv` every run.\n"
        )
        for note in results.notes:
            sink.write(f"\n- {note}")
        if results.notes:
            sink.write("\n")
        for loop, protocol in dict.fromkeys((key[0], key[1]) for key in results.cases):
            keys = [key for key in results.cases if key[:2] == (loop, protocol)]
            sink.write(f"\n## {loop.capitalize()} loop, protocol {protocol}\n\n")
            write_table(sink, results, keys, loop)


def write_table(sink, results, keys, loop):
    heads = ["clients", "contender", "tps", "p50 ms", "p99 ms", "CPU µs/txn", "user + system", "switches/txn"]
    if loop == "open":
        heads[2:3] = ["rate/s", "tps", "lag p99 ms"]
    heads += [f"CPU ÷ {rival}" for rival in rivals(results)] + ["tps ÷ pgbouncer", "tps ÷ direct", "p99 ÷ pgbouncer"]
    sink.write("| " + " | ".join(heads) + " |\n|" + " ---: |" * len(heads) + "\n")
    for key in keys:
        for contender in results.contenders:
            if results.cases[key].get(contender):
                sink.write("| " + " | ".join(table_row(results, key, contender, loop)) + " |\n")


def rivals(results):
    """Whose CPU time others are compared with: PgBouncer's, and our own when several builds or shard counts run."""
    ours = [name for name in results.contenders if name not in ("direct", "pgbouncer")]
    return ["pgbouncer", *(ours[:1] if len(ours) > 1 else [])]


def table_row(results, key, contender, loop):
    def cell(column, digits=0, scale=1.0):
        return spread(results.values(key, contender, column), digits, scale)

    def ratio(rival, column):
        return "" if rival == contender else spread(results.ratios(key, contender, rival, column), 2)

    def median(column):
        values = results.values(key, contender, column)
        return f"{statistics.median(values):.1f}" if values else "–"

    row = [str(key[2]), contender, cell("tps"), cell("latency_p50_us", 2, 1e-3), cell("latency_p99_us", 2, 1e-3)]
    if loop == "open":
        row[2:3] = [str(key[3]), cell("tps"), cell("lag_p99_us", 2, 1e-3)]
    row += [
        cell("cpu_us_per_txn", 1),
        f"{median('cpu_user_us_per_txn')} + {median('cpu_system_us_per_txn')}",
        cell("switches_voluntary_per_txn", 2),
        *(ratio(rival, "cpu_us_per_txn") for rival in rivals(results)),
        *(ratio("pgbouncer", "tps"), ratio("direct", "tps"), ratio("pgbouncer", "latency_p99_us")),
    ]
    return row


# --- plots --------------------------------------------------------------------------------------------------------

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BOTTOM, GAP = 270, 210, 64, 46, 44, 30
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


def write_plots(directory, rows):
    results = Results(rows)
    plots = [
        ("tps.svg", "closed", "tps", 1.0, "transactions per second", False),
        ("p99.svg", "closed", "latency_p99_us", 1e-3, "p99 latency, ms", True),
        ("cpu.svg", "closed", "cpu_us_per_txn", 1.0, "CPU of the pooler, µs per transaction", False),
        ("open-p99.svg", "open", "latency_p99_us", 1e-3, "p99 latency from the scheduled start, ms", True),
        ("open-cpu.svg", "open", "cpu_us_per_txn", 1.0, "CPU of the pooler, µs per transaction", False),
    ]
    for name, loop, column, scale, title, logarithmic in plots:
        panels = panels_of(results, loop, column, scale)
        if panels:
            (directory / name).write_text(figure(title, panels, results.contenders, loop, logarithmic))


def panels_of(results, loop, column, scale):
    """protocol -> (x labels, contender -> x label -> scaled values of all rounds)."""
    panels = {}
    for key in results.cases:
        if key[0] != loop:
            continue
        label = key[3] if loop == "open" else key[2]
        labels, series = panels.setdefault(key[1], ([], collections.defaultdict(dict)))
        labels.append(label)
        for contender in results.contenders:
            values = [value * scale for value in results.values(key, contender, column)]
            if values:
                series[contender][label] = values
    return {name: panel for name, panel in panels.items() if panel[1]}


def figure(title, panels, contenders, loop, logarithmic):
    every = [value for _, series in panels.values() for points in series.values() for v in points.values() for value in v]
    ticks = log_ticks(min(every), max(every)) if logarithmic else linear_ticks(max(every))
    width = LEFT + len(panels) * (PANEL_WIDTH + GAP)
    height = TOP + PANEL_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="16" font-size="13" font-weight="bold">{html.escape(title)}</text>',
    ]
    parts += legend(contenders)
    for number, (protocol, panel) in enumerate(panels.items()):
        left = LEFT + number * (PANEL_WIDTH + GAP)
        parts += panel_frame(left, protocol, panel[0], ticks, logarithmic, loop, number == 0)
        for index, contender in enumerate(contenders):
            parts += line(left, panel, contender, index, ticks, logarithmic)
    return "\n".join(parts) + "\n</svg>\n"


def legend(contenders):
    parts, x = [], LEFT
    for index, contender in enumerate(contenders):
        parts.append(f'<rect x="{x}" y="24" width="10" height="10" fill="{COLOURS[index % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 14}" y="33">{html.escape(contender)}</text>')
        x += 40 + 7 * len(contender)
    return parts


def panel_frame(left, protocol, labels, ticks, logarithmic, loop, first):
    bottom = TOP + PANEL_HEIGHT
    parts = []
    for tick in ticks:
        y = vertical(tick, ticks, logarithmic)
        parts.append(f'<path d="M{left} {y:.1f}h{PANEL_WIDTH}" stroke="#ddd"/>')
        if first:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for index, label in enumerate(labels):
        x = horizontal(left, index, len(labels))
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>')
    unit = "scheduled transactions per second" if loop == "open" else "clients"
    middle = left + PANEL_WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 32}" text-anchor="middle">{html.escape(protocol)}: {unit}</text>')
    parts.append(f'<path d="M{left} {TOP}v{PANEL_HEIGHT}h{PANEL_WIDTH}" fill="none" stroke="#444"/>')
    return parts


def line(left, panel, contender, index, ticks, logarithmic):
    """The medians, joined, with a whisker from the lowest to the highest round."""
    labels, series = panel
    colour, points, parts = COLOURS[index % len(COLOURS)], [], []
    for place, label in enumerate(labels):
        values = series.get(contender, {}).get(label)
        if not values:
            continue
        # Side by side, so that whiskers do not hide each other.
        x = horizontal(left, place, len(labels)) + (index - 1) * 3
        low, median, high = (vertical(f(values), ticks, logarithmic) for f in (min, statistics.median, max))
        points.append(f"{x:.1f},{median:.1f}")
        parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{median:.1f}" r="3" fill="{colour}"/>')
    return [f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>', *parts]


def horizontal(left, index, count):
    return left + PANEL_WIDTH * (index + 0.5) / count


def vertical(value, ticks, logarithmic):
    low, high = ticks[0], ticks[-1]
    if logarithmic:
        part = math.log(max(value, low) / low) / math.log(high / low)
    else:
        part = (value - low) / (high - low)
    return TOP + PANEL_HEIGHT * (1 - part)


def linear_ticks(highest):
    highest = highest or 1.0
    step = 10 ** math.floor(math.log10(highest))
    while highest / step < 4:
        step /= 2
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def log_ticks(lowest, highest):
    """1, 2 and 5 of every decade touched; always at least two."""
    low, high = math.floor(math.log10(max(lowest, 1e-3))), math.ceil(math.log10(max(highest, 1e-3)))
    ticks = [part * 10.0**power for power in range(low, high + 1) for part in (1, 2, 5)]
    first = max((i for i, tick in enumerate(ticks) if tick <= lowest), default=0)
    last = min((i for i, tick in enumerate(ticks) if tick >= highest), default=len(ticks) - 1)
    return ticks[first : max(last, first + 1) + 1]
