#!/usr/bin/env python3
"""Measures Ringbouncer, PgBouncer, other poolers and PostgreSQL itself, interleaved, and writes down what it saw.

What there is to measure stands in workload.py, who is measured in contenders.py. A run that was cut short, or a matrix that
is to be measured in parts, goes on with the same --out: what is in its raw.csv is not measured again.
"""

import argparse
import contextlib
import dataclasses
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
sys.path.insert(0, str(HERE))

import contenders as recipes  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import swarm  # noqa: E402
import throwaway  # noqa: E402
import workload  # noqa: E402

# The driver, the console, another contender's pool: what the server must take besides direct clients.
SPARE_CONNECTIONS = 50
FULL = {
    "workloads": [name for name in workload.CASES if not name.startswith("tls")],
    "protocols": workload.SELECT_PROTOCOLS,
    "clients": [1, 8, 32, 128, 1000],
    "rates": [300, 2000, 5000],
    "pool_sizes": [20, 40],
    "shards": [1, 2],
    "idle_clients": workload.EVERYBODY,
    "busy_clients": 10_000,
    "rounds": 5,
    "seconds": 3,
    "scale": 10,
}
QUICK = {
    "workloads": ["select", "rate", "null", "idle"],
    "protocols": ["simple", "prepared"],
    "clients": [32],
    "rates": [300],
    "pool_sizes": [20],
    "shards": [1],
    "idle_clients": 200,
    "busy_clients": 100,
    "rounds": 1,
    "seconds": 1,
    "scale": 1,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",") if part]
    names = lambda text: [part for part in text.split(",") if part]
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than a minute; its numbers mean nothing")
    parser.add_argument("--workloads", type=names, metavar="A,B", help=f"of {','.join(workload.CASES)}; TLS only if named")
    parser.add_argument("--contenders", type=names, default=["direct", "ringbouncer", "pgbouncer", *recipes.OTHERS])
    parser.add_argument("--shards", type=numbers, help="cores of Ringbouncer and processes of PgBouncer, for instance 1,2")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH", help="another Ringbouncer to compare")
    parser.add_argument("--pgbouncer", metavar="PATH", help="default: the one in PATH")
    for name in recipes.OTHERS:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="PATH", help="left out without it")
    parser.add_argument("--protocols", type=names)
    parser.add_argument("--clients", type=numbers, help="of pgbench")
    parser.add_argument("--rates", type=numbers, help="open loop, transactions per second")
    parser.add_argument("--pool-sizes", type=numbers)
    parser.add_argument("--idle-clients", type=int, help="how many to hold (default: as many as the limits allow)")
    parser.add_argument("--busy-clients", type=int, help="how many the swarm drives in a closed loop")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="length of each measurement; one second of warm-up comes on top")
    parser.add_argument("--scale", type=int, help="pgbench's scale factor")
    parser.add_argument("--threads", type=int, default=2, help="pgbench's threads")
    parser.add_argument("--sampling-rate", type=float, default=1.0, help="part of the transactions that pgbench logs")
    parser.add_argument("--max-connections", type=int, default=600, help="of the server; direct runs with more are skipped")
    parser.add_argument("--out", type=pathlib.Path, help="default: results/<date>-<host>-<commit>; with --quick in target/")
    arguments = parser.parse_args()
    for key, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    if arguments.rounds < 1 or arguments.seconds < 1 or not 0 < arguments.sampling_rate <= 1:
        parser.error("--rounds and --seconds want at least 1, --sampling-rate more than 0 and at most 1")
    if set(arguments.protocols) - set(FULL["protocols"]):
        parser.error(f"--protocols knows {', '.join(FULL['protocols'])}")
    if set(arguments.workloads) - set(workload.CASES):
        parser.error(f"--workloads knows {', '.join(workload.CASES)}")
    return arguments


def main():
    arguments = parse_arguments()
    # A signal must pass through the context managers that stop the servers.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    allow_many_files()
    started = datetime.datetime.now(datetime.timezone.utc)
    cases = list(matrix(arguments).cases())
    if any(case.is_swarm for case in cases) and swarm.missing():
        sys.exit(swarm.missing())
    out = results_folder(arguments, started)
    journal = report.Journal(out / "raw.csv")
    # Before the run: the tree may change while it lasts.
    manifest = describe(arguments, started)
    try:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(throwaway.work_dir("load"))
            bench = Bench(arguments, directory, stack, manifest)
            bench.recipes()
            for name, why in manifest["absent"].items():
                print(f"{name}: left out: {why}")
            for setting, part in workload.sections(cases).items():
                run_section(bench, setting, part, journal)
    finally:
        # What a run that is cut short has measured can be read, and gone on with.
        finish(out, manifest, journal.rows, started)
    print(f"results in {out}")
    failed = [row for row in journal.rows if row["status"] == "failed"]
    if failed:
        sys.exit(f"{len(failed)} of {len(journal.rows)} measurements failed; first: {failed[0]['contender']}: {failed[0]['note']}")
    if not any(row["status"] == "ok" for row in journal.rows):
        sys.exit("nothing was measured")


def matrix(arguments):
    fields = [field.name for field in dataclasses.fields(workload.Matrix)]
    return workload.Matrix(**{name: getattr(arguments, name) for name in fields})


def allow_many_files():
    """pgbench and the poolers inherit this; 1,000 clients do not fit into the usual 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- what runs ----------------------------------------------------------------------------------------------------


class Bench:
    """The server behind everybody, and how to start those in front of it."""

    def __init__(self, arguments, directory, stack, manifest):
        self.arguments, self.directory, self.manifest = arguments, directory, manifest
        settings = {"max_connections": str(arguments.max_connections), "shared_buffers": "256MB", "autovacuum": "off"}
        self.server = throwaway.start_postgres(directory, settings)
        stack.callback(self.server.stop)
        environment = {
            **throwaway.libpq_free_environment(),
            "PGUSER": throwaway.SUPERUSER,
            "PGDATABASE": recipes.DATABASE,
            "PGPASSWORD": recipes.PASSWORD,
        }
        pgbench = throwaway.postgres_bin() / "pgbench"
        self.load = measure.Load(pgbench, environment, arguments.seconds, arguments.threads, arguments.sampling_rate)
        fill(self.load, self.server.port, arguments.scale)
        self.null_server = None
        self.stack = stack
        self.certificate = recipes.make_certificate(directory)
        manifest["postgres"] = {"version": self.server.version, "config": self.server.config}

    def target(self, backend, pool_size, uses_tls):
        port = self.server.port
        if backend == "null":
            if self.null_server is None:
                self.null_server = swarm.start_null_server(self.directory, max(self.arguments.shards))
                self.stack.callback(self.null_server.stop)
            port = self.null_server.port
        return recipes.Target(port, pool_size, backend, self.certificate if uses_tls else None)

    def recipes(self):
        """Those of the contenders that can be started here."""
        direct_max = self.arguments.max_connections - SPARE_CONNECTIONS - 200
        found = recipes.recipes(self.arguments, self.server.version, direct_max)
        self.manifest["absent"] = {recipe.name: recipe.absent for recipe in found if recipe.absent}
        return [recipe for recipe in found if not recipe.absent]

    def start(self, recipe, target):
        """A running contender that has opened its pool."""
        running = recipe.start(self.directory, target)
        table = {"version": running.version, "config": running.config}
        self.manifest.setdefault(f"contender.{running.name}", table)
        try:
            warm_up(self.load, running, target)
        except throwaway.StartError:
            running.stop()
            raise
        return running


def fill(load, port, scale):
    address = ["-h", "127.0.0.1", "-p", str(port)]
    for command in (
        [throwaway.postgres_bin() / "createdb", *address, recipes.DATABASE],
        [load.pgbench, *address, "-i", "-q", "-s", str(scale)],
    ):
        done = subprocess.run(command, env=load.environment, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise throwaway.StartError(f"{command[0]} failed: {done.stderr.strip()}")


def warm_up(load, running, target):
    """Opens the whole pool and fills the server's caches, so that the first round is like the others."""
    if target.backend == "null":
        with swarm.Swarm(running.port, 40, recipes.DATABASE) as clients:
            clients.holding()
            clients.drive(running.pids, 40, 0, 0.2, "simple")
        return
    command = [load.pgbench, "-n", "-S", "-h", "127.0.0.1", "-p", str(running.port), "-c", "40", "-j", "2", "-T", "1"]
    done = subprocess.run(command, env=load.environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise throwaway.StartError(f"the warm-up of {running.name} failed: {done.stderr.strip()[-500:]}")


# --- the matrix ---------------------------------------------------------------------------------------------------


def run_section(bench, setting, cases, journal):
    """Every case for every contender, round by round, all of them running side by side."""
    backend, pool_size, uses_tls = setting
    arguments = bench.arguments
    found = bench.recipes()
    if all(journal.has(case, number, recipe.name) for case in cases for number in rounds(arguments) for recipe in found):
        return
    target = bench.target(*setting)
    print(f"backend {backend}, pool_size {pool_size}{', TLS' if uses_tls else ''}: {len(cases)} cases", flush=True)
    with contextlib.ExitStack() as stack:
        running = {}
        for recipe in found:
            if recipe.refusal(target) is None and not all(case.is_fresh for case in cases):
                running[recipe.name] = bench.start(recipe, target)
                stack.callback(running[recipe.name].stop)
                print(f"{recipe.name}: {running[recipe.name].version}, port {running[recipe.name].port}", flush=True)
        for number in rounds(arguments):
            for index, case in enumerate(cases):
                # Everybody is first, second, last equally often.
                shift = (number + index) % len(found)
                for order, recipe in enumerate(found[shift:] + found[:shift], 1):
                    if not journal.has(case, number, recipe.name):
                        row = one_row(bench, recipe, running.get(recipe.name), target, case)
                        journal.add(case, number, recipe.name, {"order": order} | row)
                        say(number, recipe.name, case, row)


def rounds(arguments):
    return range(1, arguments.rounds + 1)


def one_row(bench, recipe, running, target, case):
    refusal = recipe.refusal(target) or (running.refusal(case) if running else None)
    if case.is_fresh and recipe.binary is None and refusal is None:
        refusal = "there is nothing to hold clients with"
    if refusal:
        return {"status": "skipped", "note": refusal}
    try:
        if case.is_fresh:
            running = bench.start(recipe, target)
        try:
            return {"status": "ok", "note": ""} | numbers_of(bench, running, case)
        finally:
            if case.is_fresh:
                running.stop()
    except (measure.MeasureError, throwaway.StartError, OSError) as problem:
        return {"status": "failed", "note": str(problem)}


def numbers_of(bench, running, case):
    seconds = bench.arguments.seconds
    if case.workload in ("idle", "tls-idle"):
        return swarm.measure_idle(running, case, seconds, recipes.DATABASE)
    if case.is_swarm:
        return swarm.measure_drive(running, case, seconds, recipes.DATABASE)
    return measure.measure(bench.load, running, case)


def say(number, name, case, row):
    if row["status"] != "ok":
        told = f"{row['status']}: {row['note']}"
    elif "tps" in row:
        cpu = f", {row['cpu_us_per_txn']:.1f} µs CPU/txn" if "cpu_us_per_txn" in row else ""
        told = f"{row['tps']:.0f} tps, p99 {row['latency_p99_us'] / 1000:.2f} ms{cpu}"
    else:
        told = (
            f"{row['clients_held']} clients, {row['user_bytes_per_client']:.0f} bytes each"
            f" ({row['user_bytes_per_used_client']:.0f} once used), kernel {row['kernel_bytes_per_client']:.0f},"
            f" idle at {row['idle_cores']:.2%} of a core"
        )
    print(f"round {number}: {name}: {case}: {told}", flush=True)


# --- what is written down -----------------------------------------------------------------------------------------


def describe(arguments, started):
    return {
        "run": {
            "date": started.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "command": shlex.join(sys.argv),
            "commit": commit(),
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "scale": arguments.scale,
            "pgbench_threads": arguments.threads,
            "sampling_rate": arguments.sampling_rate,
            "order": "round-robin over the contenders within each case and round, first one rotated",
        },
        "machine": machine(),
        "absent": {},
    }


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
        "load_before": read("/proc/loadavg").strip(),
        "files_per_process_max": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
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


def results_folder(arguments, started):
    name = f"{started:%Y-%m-%d}-{host()}-{commit()}"
    base = throwaway.ROOT / "target/loadtest" if arguments.quick else HERE / "results"
    out = arguments.out or fresh(base / name)
    out.mkdir(parents=True, exist_ok=True)
    return out


def finish(out, manifest, rows, started):
    """A run in parts has a manifest of each part."""
    now = datetime.datetime.now(datetime.timezone.utc)
    manifest["run"]["minutes"] = round((now - started).total_seconds() / 60, 1)
    manifest["machine"]["load_after"] = read("/proc/loadavg").strip()
    report.write_toml(fresh(out / "manifest.toml"), manifest)
    report.write_summary(out / "summary.md", rows, manifest)
    report.write_plots(out, rows)


def fresh(path):
    """The path itself, or with a number when there is one already."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


if __name__ == "__main__":
    try:
        main()
    except throwaway.StartError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
