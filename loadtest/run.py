#!/usr/bin/env python3
"""Measures Ringbouncer, PgBouncer and PostgreSQL itself with pgbench, interleaved, and writes down what it saw."""

import argparse
import contextlib
import datetime
import os
import pathlib
import platform
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

import measure  # noqa: E402
import report  # noqa: E402
import throwaway  # noqa: E402

DATABASE = "pgbench"
POOL_SIZE = 20
MAX_CLIENT_CONN = 5000
# The driver, the console, another contender's pool: what the server must take besides direct clients.
SPARE_CONNECTIONS = 20
FULL = {
    "protocols": ["simple", "extended", "prepared"],
    "clients": [1, 8, 32, 128, 1000],
    "rates": [300, 2000, 5000],
    "rounds": 5,
    "seconds": 3,
    "scale": 10,
}
QUICK = {"protocols": ["simple", "prepared"], "clients": [32], "rates": [300], "rounds": 1, "seconds": 1, "scale": 1}
# Open loop: enough clients that a slow answer does not hold back the next start.
OPEN_LOOP_CLIENTS = 32


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = lambda text: [int(part) for part in text.split(",") if part]
    names = lambda text: [part for part in text.split(",") if part]
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than a minute; its numbers mean nothing")
    parser.add_argument("--contenders", type=names, default=["direct", "ringbouncer", "pgbouncer"])
    parser.add_argument("--shards", type=numbers, default=[1], help="one contender for each number, for instance 1,2")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH", help="another Ringbouncer to compare")
    parser.add_argument("--pgbouncer", metavar="PATH", help="default: the one in PATH")
    parser.add_argument("--protocols", type=names)
    parser.add_argument("--clients", type=numbers)
    parser.add_argument("--rates", type=numbers, help="open loop, transactions per second; empty for none")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="length of each measurement; one second of warm-up comes on top")
    parser.add_argument("--scale", type=int, help="pgbench's scale factor")
    parser.add_argument("--threads", type=int, default=2, help="pgbench's threads")
    parser.add_argument("--sampling-rate", type=float, default=1.0, help="part of the transactions that pgbench logs")
    parser.add_argument("--max-connections", type=int, default=250, help="of the server; direct runs with more are skipped")
    parser.add_argument("--out", type=pathlib.Path, help="default: results/<date>-<host>-<commit>; with --quick in target/")
    arguments = parser.parse_args()
    for key, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    if arguments.rounds < 1 or arguments.seconds < 1 or not 0 < arguments.sampling_rate <= 1:
        parser.error("--rounds and --seconds want at least 1, --sampling-rate more than 0 and at most 1")
    if set(arguments.protocols) - set(FULL["protocols"]):
        parser.error(f"--protocols knows {', '.join(FULL['protocols'])}")
    return arguments


def main():
    arguments = parse_arguments()
    # A signal must pass through the context managers that stop the servers.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    allow_many_files()
    started = datetime.datetime.now(datetime.timezone.utc)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(throwaway.work_dir("load"))
        load, contenders, server = start_all(arguments, directory, stack)
        # Before the run: the tree may change while it lasts.
        measured = commit()
        rows = run_all(arguments, load, contenders)
    manifest = describe(arguments, started, measured, contenders, server)
    out = write_results(arguments, started, manifest, rows)
    print(f"results in {out}")
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} measurements failed; first: {failed[0]['contender']}: {failed[0]['note']}")
    if not any(row["status"] == "ok" for row in rows):
        sys.exit("nothing was measured")


def allow_many_files():
    """pgbench and the poolers inherit this; 1,000 clients do not fit into the usual 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- who runs -----------------------------------------------------------------------------------------------------


def start_all(arguments, directory, stack):
    settings = {"max_connections": str(arguments.max_connections), "shared_buffers": "256MB", "autovacuum": "off"}
    server = throwaway.start_postgres(directory, settings)
    stack.callback(server.stop)
    environment = throwaway.libpq_free_environment() | {"PGUSER": throwaway.SUPERUSER, "PGDATABASE": DATABASE}
    load = measure.Load(
        throwaway.postgres_bin() / "pgbench", environment, arguments.seconds, arguments.threads, arguments.sampling_rate
    )
    fill(load, server.port, arguments.scale)
    contenders = []
    for name in arguments.contenders:
        contenders += start_contender(name, arguments, directory, stack, server)
    for contender in contenders:
        print(f"{contender.name}: {contender.version}, port {contender.port}")
        warm_up(load, contender)
    return load, contenders, server


def fill(load, port, scale):
    address = ["-h", "127.0.0.1", "-p", str(port)]
    for command in (
        [throwaway.postgres_bin() / "createdb", *address, DATABASE],
        [load.pgbench, *address, "-i", "-q", "-s", str(scale)],
    ):
        done = subprocess.run(command, env=load.environment, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise throwaway.StartError(f"{command[0]} failed: {done.stderr.strip()}")


def start_contender(name, arguments, directory, stack, server):
    if name == "direct":
        spare = min(SPARE_CONNECTIONS + POOL_SIZE * len(arguments.contenders), arguments.max_connections - 1)
        return [measure.Contender("direct", server.port, None, server.version, "", arguments.max_connections - spare)]
    if name == "ringbouncer":
        return start_ringbouncers(arguments, directory, stack, server)
    if name == "pgbouncer":
        return start_pgbouncer(arguments, directory, stack, server)
    sys.exit(f"--contenders knows direct, ringbouncer and pgbouncer, not {name}")


def start_ringbouncers(arguments, directory, stack, server):
    binaries = {"ringbouncer": release_binary()}
    for also in arguments.also:
        name, _, path = also.partition("=")
        binaries[name] = pathlib.Path(path).resolve()
    config = throwaway.ringbouncer_config(server.port, [DATABASE], POOL_SIZE, MAX_CLIENT_CONN)
    started = []
    for name, binary in binaries.items():
        for shards in arguments.shards:
            label = name if len(arguments.shards) == 1 else f"{name}-{shards}"
            program = throwaway.start_ringbouncer(directory, config, shards, label, binary)
            stack.callback(program.stop)
            version = f"{program.version}, {shards} shard{'s' if shards > 1 else ''}"
            started.append(measure.Contender(label, program.port, program.pid, version, program.config))
    return started


def release_binary():
    """A debug build would measure nothing of interest."""
    named = os.environ.get("RINGBOUNCER_BIN")
    binary = pathlib.Path(named or throwaway.ROOT / "target/release/ringbouncer")
    if not binary.exists():
        sys.exit(f"{binary} is missing: cargo build --release, or set RINGBOUNCER_BIN")
    return binary.resolve()


def start_pgbouncer(arguments, directory, stack, server):
    binary = arguments.pgbouncer or throwaway.pgbouncer_binary()
    if not binary:
        print("pgbouncer: not installed, left out (on Debian: apt-get install pgbouncer)")
        return []
    config = throwaway.pgbouncer_config(binary, server.port, [DATABASE], POOL_SIZE, MAX_CLIENT_CONN)
    program = throwaway.start_pgbouncer(directory, config, binary)
    stack.callback(program.stop)
    prepares = throwaway.pgbouncer_version(binary) >= (1, 21)
    return [measure.Contender("pgbouncer", program.port, program.pid, program.version, program.config, None, prepares)]


def warm_up(load, contender):
    """Opens the whole pool and fills the server's caches, so that the first round is like the others."""
    command = [load.pgbench, "-n", "-S", "-h", "127.0.0.1", "-p", str(contender.port), "-c", "40", "-j", "2", "-T", "1"]
    done = subprocess.run(command, env=load.environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise throwaway.StartError(f"the warm-up of {contender.name} failed: {done.stderr.strip()[-500:]}")


# --- the matrix ---------------------------------------------------------------------------------------------------


def run_all(arguments, load, contenders):
    cases = [measure.Case(protocol, clients) for protocol in arguments.protocols for clients in arguments.clients]
    cases += [
        measure.Case(protocol, OPEN_LOOP_CLIENTS, rate)
        for protocol in arguments.protocols
        if protocol != "extended"
        for rate in arguments.rates
    ]
    minutes = len(cases) * len(contenders) * arguments.rounds * (arguments.seconds + measure.WARM_UP_SECONDS + 0.3) / 60
    print(f"{len(cases)} cases, {len(contenders)} contenders, {arguments.rounds} rounds: about {minutes:.0f} minutes")
    rows = []
    for number in range(1, arguments.rounds + 1):
        for index, case in enumerate(cases):
            # Everybody is first, second, last equally often.
            shift = (number + index) % len(contenders)
            for order, contender in enumerate(contenders[shift:] + contenders[:shift], 1):
                rows.append(one_row(load, contender, case, number, order))
    names = [contender.name for contender in contenders]
    return sorted(rows, key=lambda row: (row["round"], cases_index(cases, row), names.index(row["contender"])))


def cases_index(cases, row):
    return cases.index(measure.Case(row["protocol"], row["clients"], row["rate"] or None))


def one_row(load, contender, case, number, order):
    row = {
        "round": number,
        "order": order,
        "loop": "open" if case.rate else "closed",
        "protocol": case.protocol,
        "clients": case.clients,
        "rate": case.rate or "",
        "contender": contender.name,
        "status": "ok",
        "note": "",
    }
    refusal = contender.refusal(case)
    if refusal:
        return row | {"status": "skipped", "note": refusal}
    try:
        row |= measure.measure(load, contender, case)
    except (measure.MeasureError, OSError) as problem:
        row |= {"status": "failed", "note": str(problem)}
    say(number, contender, case, row)
    return row


def say(number, contender, case, row):
    if row["status"] == "ok":
        cpu = f", {row['cpu_us_per_txn']:.1f} µs CPU/txn" if "cpu_us_per_txn" in row else ""
        told = f"{row['tps']:.0f} tps, p99 {row['latency_p99_us'] / 1000:.2f} ms{cpu}"
    else:
        told = f"{row['status']}: {row['note']}"
    print(f"round {number}: {contender.name}: {case}: {told}", flush=True)


# --- what is written down -----------------------------------------------------------------------------------------


def describe(arguments, started, measured, contenders, server):
    manifest = {
        "run": {
            "date": started.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "command": shlex.join(sys.argv),
            "commit": measured,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "scale": arguments.scale,
            "pool_size": POOL_SIZE,
            "pgbench_threads": arguments.threads,
            "sampling_rate": arguments.sampling_rate,
            "clients": arguments.clients,
            "protocols": arguments.protocols,
            "rates": arguments.rates,
            "order": "round-robin over the contenders within each case and round, first one rotated",
            "minutes": round((datetime.datetime.now(datetime.timezone.utc) - started).total_seconds() / 60, 1),
        },
        "machine": machine(),
        "postgres": {"version": server.version, "config": server.config},
    }
    for contender in contenders:
        table = {"version": contender.version, "config": contender.config}
        manifest[f"contender.{contender.name}"] = table
    return manifest


def machine():
    cpu = re.search(r"model name\s*:\s*(.*)", read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))
    return {
        "host": host(),
        "kernel": platform.release(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_mib": int(memory[1]) // 1024 if memory else 0,
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "unknown",
        "load_before_and_after": read("/proc/loadavg").strip(),
        "python": platform.python_version(),
    }


def read(path):
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_text()
    return ""


def host():
    return re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname().split(".")[0]).strip("-") or "host"


def commit():
    """The commit, with `-dirty` when the tree differs from it."""
    git = ["git", "-C", str(HERE)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        name = subprocess.check_output([*git, "rev-parse", "--short=10", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True, stderr=subprocess.DEVNULL)
        return name.strip() + ("-dirty" if changed.strip() else "")
    return "unknown"


def write_results(arguments, started, manifest, rows):
    name = f"{started:%Y-%m-%d}-{host()}-{manifest['run']['commit']}"
    base = throwaway.ROOT / "target/loadtest" if arguments.quick else HERE / "results"
    out = arguments.out or fresh(base / name)
    out.mkdir(parents=True, exist_ok=True)
    report.write_csv(out / "raw.csv", rows)
    report.write_toml(out / "manifest.toml", manifest)
    report.write_summary(out / "summary.md", rows, manifest)
    report.write_plots(out, rows)
    return out


def fresh(path):
    """The path itself, or with a number when a run of the same day and commit is there already."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


if __name__ == "__main__":
    try:
        main()
    except throwaway.StartError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
