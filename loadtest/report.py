"""What a run leaves behind: raw.csv, manifest.toml, summary.md and the plots."""

import collections
import csv
import dataclasses
import html
import json
import math
import statistics

import contenders
import workload

CASE = ["workload", "protocol", "clients", "rate", "pool_size", "held"]
COLUMNS = [
    *("round", "order", *CASE, "contender", "status", "note"),
    *("transactions", "failed", "window_s", "tps"),
    *("latency_avg_us", "latency_p50_us", "latency_p90_us", "latency_p99_us", "latency_p999_us", "latency_max_us"),
    *("latency_p99_over_p50", "lag_avg_us", "lag_p99_us"),
    *("cpu_us_per_txn", "cpu_user_us_per_txn", "cpu_system_us_per_txn", "cores_used"),
    *("switches_voluntary_per_txn", "switches_forced_per_txn", "resident_kib"),
    *("clients_held", "user_bytes_per_client", "user_bytes_per_used_client", "kernel_bytes_per_client", "idle_cores"),
]
TEXTS = {"workload", "protocol", "contender", "status", "note"}


class Journal:
    """raw.csv: a row as soon as it has been measured, so that a run that is cut short has lost nothing."""

    def __init__(self, path):
        self.path, self.rows = path, []
        if path.exists():
            with open(path, newline="") as source:
                rows = [{key: value_of(key, text) for key, text in row.items()} for row in csv.DictReader(source)]
            # What failed or was skipped gets another chance.
            self.rows = [row for row in rows if row["status"] == "ok"]
        self.known = {self.key(row) for row in self.rows}
        with open(path, "w", newline="") as sink:
            writer = self.writer(sink)
            writer.writeheader()
            writer.writerows(map(shown, self.rows))

    @staticmethod
    def writer(sink):
        return csv.DictWriter(sink, COLUMNS, restval="", lineterminator="\n")

    @staticmethod
    def key(row):
        return tuple(row[name] for name in (*CASE, "round", "contender"))

    def has(self, case, number, contender):
        return (*dataclasses.astuple(case), number, contender) in self.known

    def add(self, case, number, contender, row):
        row = dataclasses.asdict(case) | {"round": number, "contender": contender} | row
        self.rows.append(row)
        self.known.add(self.key(row))
        with open(self.path, "a", newline="") as sink:
            self.writer(sink).writerow(shown(row))


def value_of(key, text):
    if key in TEXTS or text == "":
        return text
    return float(text) if "." in text or "e" in text else int(text)


def shown(row):
    return {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}


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
        for row in sorted(rows, key=lambda row: row["round"]):
            if row["contender"] not in self.contenders:
                self.contenders.append(row["contender"])
            key = workload.Case(**{name: row[name] for name in CASE})
            if row["status"] == "ok":
                self.cases[key][row["contender"]][row["round"]] = row
            if row["note"]:
                note = f"{row['contender']}, {row['workload']}, {row['protocol']}: {row['status']}: {row['note']}"
                self.notes += [note] if note not in self.notes else []

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
            f"{run['rounds']} rounds of {run['seconds']} s, contenders interleaved; scale {run['scale']}."
            f" {manifest['machine']['cpu']}, {manifest['machine']['cores']}"
            f" cores shared with load and server, kernel {manifest['machine']['kernel']}.\n\n"
            "Every cell: median (lowest–highest) over the rounds. Ratios are taken within each round. CPU is the pooler's"
            " alone. The manifests have versions and configurations, `raw.csv` every run.\n"
        )
        notes = [f"{name}: left out: {why}" for name, why in manifest["absent"].items()] + results.notes
        for note in notes:
            sink.write(f"\n- {note}")
        if notes:
            sink.write("\n")
        write_targets(sink, results)
        tables = dict.fromkeys((case.workload, case.protocol, case.pool_size) for case in results.cases)
        for name, protocol, pool_size in tables:
            cases = [case for case in results.cases if (case.workload, case.protocol, case.pool_size) == (name, protocol, pool_size)]
            cases.sort(key=lambda case: (case.clients, case.rate, case.held))
            sink.write(f"\n## {name}, protocol {protocol}, pool_size {pool_size}\n\n")
            if name.endswith("idle"):
                write_table(sink, results, cases, IDLE_HEADS, idle_row)
            else:
                write_table(sink, results, cases, drive_heads(results, cases), drive_row)


def write_table(sink, results, cases, heads, row_of):
    sink.write("| " + " | ".join(heads) + " |\n|" + " ---: |" * len(heads) + "\n")
    for case in cases:
        for contender in results.contenders:
            if results.cases[case].get(contender):
                sink.write("| " + " | ".join(row_of(results, case, contender, len(heads))) + " |\n")


IDLE_HEADS = [
    *("contender", "clients held", "bytes per client", "bytes per used client", "÷ pgbouncer", "kernel bytes per client"),
    "idle CPU, % of a core",
]


def idle_row(results, case, contender, _width):
    def cell(column, digits=0, scale=1.0):
        return spread(results.values(case, contender, column), digits, scale)

    ratios = results.ratios(case, contender, "pgbouncer", "user_bytes_per_client")
    return [
        *(contender, cell("clients_held"), cell("user_bytes_per_client"), cell("user_bytes_per_used_client")),
        "" if contender == "pgbouncer" else spread(ratios, 2),
        *(cell("kernel_bytes_per_client"), cell("idle_cores", 2, 100)),
    ]


def drive_heads(results, cases):
    heads = ["clients", "contender", "tps", "p50 ms", "p99 ms", "p99.9 ms", "p99 ÷ p50"]
    if any(case.rate for case in cases):
        heads[2:2] = ["rate/s", "held"]
    heads += ["CPU µs/txn", "user + system", "switches/txn"]
    heads += [f"CPU ÷ {rival}" for rival in rivals(results)]
    return heads + ["tps ÷ pgbouncer", "tps ÷ direct", "p99 ÷ pgbouncer"]


def rivals(results):
    """Whose CPU time others are compared with: PgBouncer's, and our own when several builds or shard counts run."""
    theirs = ("direct", "pgbouncer", *contenders.OTHERS)
    ours = [name for name in results.contenders if name not in theirs and not name.startswith("pgbouncer-")]
    return ["pgbouncer", *(ours[:1] if len(ours) > 1 else [])]


def drive_row(results, case, contender, width):
    def cell(column, digits=0, scale=1.0):
        return spread(results.values(case, contender, column), digits, scale)

    def ratio(rival, column):
        return "" if rival == contender else spread(results.ratios(case, contender, rival, column), 2)

    def median(column):
        values = results.values(case, contender, column)
        return f"{statistics.median(values):.1f}" if values else "–"

    row = [
        *(str(case.clients), contender, cell("tps"), cell("latency_p50_us", 2, 1e-3), cell("latency_p99_us", 2, 1e-3)),
        *(cell("latency_p999_us", 2, 1e-3), cell("latency_p99_over_p50", 2), cell("cpu_us_per_txn", 1)),
        f"{median('cpu_user_us_per_txn')} + {median('cpu_system_us_per_txn')}",
        cell("switches_voluntary_per_txn", 2),
        *(ratio(rival, "cpu_us_per_txn") for rival in rivals(results)),
        *(ratio("pgbouncer", "tps"), ratio("direct", "tps"), ratio("pgbouncer", "latency_p99_us")),
    ]
    if len(row) < width:
        row[2:2] = [str(case.rate), spread(results.values(case, contender, "clients_held")) if case.held else "0"]
    return row


# What the project wants to reach: (text, case filter, contender, rival, column, limit). `rival` None: the column itself.
CPU = "cpu_us_per_txn"
TARGETS = [
    *(
        (f"CPU, simple, {clients} clients", {"workload": "select", "protocol": "simple", "clients": clients}, CPU, limit)
        for clients, limit in ((1, 1.0), (8, 0.90), (32, 0.80), (128, 0.75), (1000, 0.70))
    ),
    *(
        (f"CPU, prepared, {clients} clients", {"workload": "select", "protocol": "prepared", "clients": clients}, CPU, limit)
        for clients, limit in ((32, 0.80), (128, 0.75))
    ),
    ("p50 latency, 1 client", {"workload": "select", "protocol": "simple", "clients": 1}, "latency_p50_us", 1.0),
    ("CPU at 300/s", {"workload": "rate", "protocol": "simple", "rate": 300}, CPU, 1.0),
    ("CPU of a reconnect", {"workload": "reconnect"}, CPU, 1 / 1.2),
    ("CPU of a TLS reconnect", {"workload": "tls-reconnect"}, CPU, 1 / 1.2),
    ("memory per idle client", {"workload": "idle"}, "user_bytes_per_client", 1.0),
    ("memory per idle TLS client", {"workload": "tls-idle"}, "user_bytes_per_client", 0.5),
]


def write_targets(sink, results):
    """Ringbouncer with one shard against PgBouncer, where both were measured."""
    lines = []
    for text, wanted, column, limit in TARGETS:
        for case in results.cases:
            if all(getattr(case, name) == value for name, value in wanted.items()):
                ratios = results.ratios(case, "ringbouncer", "pgbouncer", column)
                if ratios:
                    met = "yes" if statistics.median(ratios) <= limit else "no"
                    lines.append(f"| {text}, pool {case.pool_size} | {limit:.2f} | {spread(ratios, 2)} | {met} |\n")
    if lines:
        sink.write("\n## Against PgBouncer, one shard: at most\n\n| what | target | ratio | met |\n| --- | ---: | ---: | --- |\n")
        sink.writelines(lines)


# --- plots --------------------------------------------------------------------------------------------------------

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BOTTOM, GAP = 320, 210, 64, 46, 44, 30
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


def write_plots(directory, rows):
    results = Results(rows)
    plots = [
        ("tps", "tps", 1.0, "transactions per second", False),
        ("p99", "latency_p99_us", 1e-3, "p99 latency, ms", True),
        ("cpu", "cpu_us_per_txn", 1.0, "CPU of the pooler, µs per transaction", False),
    ]
    for family, loads in (("", ("select",)), ("tls-", ("tls",)), ("null-", ("null",)), ("open-", ("rate", "open"))):
        for name, column, scale, title, logarithmic in plots:
            panels = panels_of(results, loads, column, scale)
            if panels:
                unit = "transactions per second wanted" if family == "open-" else "clients"
                (directory / f"{family}{name}.svg").write_text(figure(title, panels, results.contenders, unit, logarithmic))


def panels_of(results, loads, column, scale):
    """title -> (x labels, contender -> x label -> scaled values of all rounds)."""
    panels = {}
    for case in sorted(results.cases, key=lambda case: (case.clients, case.rate)):
        if case.workload not in loads:
            continue
        label = case.rate or case.clients
        title = f"{case.workload}, {case.protocol}, pool {case.pool_size}"
        labels, series = panels.setdefault(title, ([], collections.defaultdict(dict)))
        labels.append(label)
        for contender in results.contenders:
            values = [value * scale for value in results.values(case, contender, column)]
            if values:
                series[contender][label] = values
    return {name: panel for name, panel in panels.items() if panel[1]}


def figure(title, panels, contenders, unit, logarithmic):
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
    for number, (name, panel) in enumerate(panels.items()):
        left = LEFT + number * (PANEL_WIDTH + GAP)
        parts += panel_frame(left, name, panel[0], ticks, logarithmic, unit, number == 0)
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


def panel_frame(left, name, labels, ticks, logarithmic, unit, first):
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
    middle = left + PANEL_WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 32}" text-anchor="middle">{html.escape(name)}: {unit}</text>')
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
