#!/usr/bin/env python3
"""Measures what TLS costs: a large result through the pooler, encrypted on no, one or both sides, and handshakes.

Ringbouncer (one shard) and PgBouncer (one process) side by side, interleaved round by round, on one throw-away cluster. Two numbers
per case: what the load saw (MiB per second, handshakes per second) and the CPU that the pooler spent on it (seconds per GiB,
microseconds per handshake), which is the one to compare on a small machine: psql, PostgreSQL and the handshakes' other side
run on the same cores.

    loadtest/tls.py                        # 1 GiB, five rounds: some minutes
    loadtest/tls.py --mib 64 --rounds 1    # a smoke run
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import resource
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))
sys.path.insert(0, str(HERE))

import contenders as recipes  # noqa: E402
import throwaway  # noqa: E402

SSL_REQUEST = struct.pack("!II", 8, 80877103)
TICKS = os.sysconf("SC_CLK_TCK")
ROW_BYTES = 1024
# Encryption towards clients, towards servers.
SIDES = {"plain": ("disable", "disable"), "client": ("require", "disable"), "both": ("require", "require")}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the result")
    parser.add_argument("--seconds", type=float, default=5, help="of each round of handshakes")
    parser.add_argument("--handshakers", type=int, default=2, help="processes that make handshakes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pgbouncer", metavar="PATH", default=shutil.which("pgbouncer"))
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH", help="another Ringbouncer to compare")
    parser.add_argument("--out", type=pathlib.Path, help="file for the summary, besides the terminal")
    return parser.parse_args()


# --- who is measured ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contender:
    """A pooler with one kind of encryption, running."""

    name: str
    sides: str
    program: throwaway.Program


def start_ringbouncer(directory, name, binary, sides, port, certificate):
    client, server = SIDES[sides]
    extra = f'client_tls_sslmode = "{client}"\nserver_tls_sslmode = "{server}"\n'
    extra += f'client_tls_cert_file = "{certificate}"\nclient_tls_key_file = "{certificate.with_suffix(".key")}"\n'
    config = throwaway.ringbouncer_config(port, [recipes.DATABASE], 20, 1000, extra)
    return throwaway.start_ringbouncer(directory, config, 1, f"{name}-{sides}", binary)


def start_pgbouncer(directory, binary, sides, port, certificate):
    client, server = SIDES[sides]
    config = throwaway.pgbouncer_config(binary, port, [recipes.DATABASE], 20, 1000)
    config += f"client_tls_sslmode = {client}\nserver_tls_sslmode = {server}\n"
    config += f"client_tls_cert_file = {certificate}\nclient_tls_key_file = {certificate.with_suffix('.key')}\n"
    return throwaway.start_pgbouncer(directory, config, binary, f"pgbouncer-{sides}")


def start_all(arguments, directory, stack, port, certificate):
    builds = [("ringbouncer", throwaway.ringbouncer_binary())]
    builds += [(name, pathlib.Path(path)) for name, path in (also.split("=", 1) for also in arguments.also)]
    started = []
    for sides in SIDES:
        for name, binary in builds:
            program = start_ringbouncer(directory, name, binary, sides, port, certificate)
            started.append(Contender(name, sides, stack.enter_context(throwaway.stopping(program))))
        if arguments.pgbouncer:
            program = start_pgbouncer(directory, arguments.pgbouncer, sides, port, certificate)
            started.append(Contender("pgbouncer", sides, stack.enter_context(throwaway.stopping(program))))
    return started


# --- what is measured ---------------------------------------------------------------------------------------------


def cpu_seconds(pid):
    """User and system time of all threads, to the scheduler's nanosecond."""
    total = 0
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError):
            total += int(path.read_text().split()[0])
    return total / 1e9


def large_result(contender, mib):
    """MiB per second, and CPU seconds per GiB."""
    mode = "disable" if contender.sides == "plain" else "require"
    rows = mib * 1024 * 1024 // ROW_BYTES
    # A row of COPY text: its bytes and a line feed.
    sql = f"copy (select repeat('x', {ROW_BYTES - 1}) from generate_series(1, {rows})) to stdout"
    address = f"host=127.0.0.1 port={contender.program.port} dbname={recipes.DATABASE} user=postgres sslmode={mode}"
    command = [throwaway.postgres_bin() / "psql", "-X", "-q", "-d", address, "-c", sql]
    before, start = cpu_seconds(contender.program.pid), time.monotonic()
    done = subprocess.run(
        command, env=throwaway.libpq_free_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600
    )
    elapsed = time.monotonic() - start
    if done.returncode != 0:
        raise throwaway.StartError(f"{contender.name}, {contender.sides}: {done.stderr.decode()}")
    return mib / elapsed, (cpu_seconds(contender.program.pid) - before) * 1024 / mib


def handshakes_until(port, deadline, result):
    """Connects, encrypts and hangs up, again and again; no session is resumed."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    count = 0
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(SSL_REQUEST)
            if raw.recv(1) != b"S":
                raise SystemExit("the pooler does not encrypt")
            with context.wrap_socket(raw):
                count += 1
    result.value = count


def handshakes(contender, processes, seconds):
    """Handshakes per second, and CPU microseconds for each."""
    before, start = cpu_seconds(contender.program.pid), time.monotonic()
    counts = [multiprocessing.Value("q", 0) for _ in range(processes)]
    workers = [
        multiprocessing.Process(target=handshakes_until, args=(contender.program.port, start + seconds, count))
        for count in counts
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode != 0:
            raise throwaway.StartError(f"{contender.name}: handshakes failed")
    elapsed, total = time.monotonic() - start, sum(count.value for count in counts)
    return total / elapsed, (cpu_seconds(contender.program.pid) - before) / total * 1e6


def run_rounds(arguments, running):
    """(case, contender) -> pairs of numbers, a pair per round; the first place rotates."""
    found = {}
    for round_number in range(arguments.rounds):
        at = round_number % len(running)
        for contender in running[at:] + running[:at]:
            seen = large_result(contender, arguments.mib)
            found.setdefault((f"result, {contender.sides}", contender.name), []).append(seen)
            if contender.sides == "client":
                seen = handshakes(contender, arguments.handshakers, arguments.seconds)
                found.setdefault(("handshakes", contender.name), []).append(seen)
        print(f"round {round_number + 1} of {arguments.rounds} done", file=sys.stderr, flush=True)
    return found


# --- the summary --------------------------------------------------------------------------------------------------


def spread(values, digits):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def summary(arguments, found, versions):
    lines = [
        f"# TLS: {arguments.mib} MiB result, {arguments.rounds} rounds",
        "",
        f"{platform.processor() or platform.machine()}, Linux {platform.release()}, {os.cpu_count()} cores; {'; '.join(versions)}.",
        "",
        "Cells are `median (lowest–highest)`. `result`: MiB/s and the pooler's CPU seconds per GiB, with encryption towards nobody, the "
        "client, or both sides. `handshakes`: per second, and the pooler's CPU microseconds for each; TLS 1.3, ECDSA P-256.",
        "",
        "| case | contender | rate | CPU | CPU against PgBouncer |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (case, name), seen in sorted(found.items()):
        rates, costs = zip(*seen)
        rivals = found.get((case, "pgbouncer"))
        ratio = "" if not rivals or name == "pgbouncer" else spread([a[1] / b[1] for a, b in zip(seen, rivals)], 2)
        digits = 0 if case == "handshakes" else 2
        lines.append(f"| {case} | {name} | {spread(rates, 0)} | {spread(costs, digits)} | {ratio} |")
    return "\n".join(lines) + "\n"


def main():
    arguments = parse_arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with throwaway.work_dir("tls") as directory, contextlib.ExitStack() as stack:
        certificate = recipes.make_certificate(directory)
        if certificate is None:
            sys.exit("openssl is needed")
        # PostgreSQL wants a key of its own that nobody else can read.
        server_key = directory / "postgres.key"
        shutil.copy(certificate.with_suffix(".key"), server_key)
        drop = throwaway.unprivileged()
        if drop:
            os.chown(server_key, drop["user"], drop["group"])
        server_key.chmod(0o600)
        settings = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(server_key), "max_connections": "200"}
        server = stack.enter_context(throwaway.stopping(throwaway.start_postgres(directory, settings)))
        create = [throwaway.postgres_bin() / "createdb", "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", recipes.DATABASE]
        subprocess.run(create, env=throwaway.libpq_free_environment(), check=True, timeout=60)
        running = start_all(arguments, directory, stack, server.port, certificate)
        found = run_rounds(arguments, running)
        versions = list(dict.fromkeys([server.version, *(contender.program.version for contender in running)]))
    text = summary(arguments, found, versions)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
