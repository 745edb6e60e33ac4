#!/usr/bin/env python3
"""What a storm of logins costs running queries: pgbench's latency through Ringbouncer while logins rain.

Every round measures three things, one after the other: `quiet` is pgbench alone; in `elsewhere` the logins rain on a second
Ringbouncer of the same machine, so that queries suffer from all that is not the pooler's doing (the load of the machine, which
also has to make the connections); in `here` they rain on the one that serves the queries. As many clients as --logins says log
in at once, over and over, each as a user of its own whose secret is the most expensive kind: plain text, for which the pooler has
to stretch a key, and every wave has users that it has not seen. PostgreSQL, pgbench and those who log in are kept off the cores
of the shards, as far as there are others. Prints p50 and p99 of each; exits with 1 if the median ratio of the p99 between
`here` and `elsewhere` is more than --limit.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

import throwaway  # noqa: E402

PASSWORD = "a password for everybody"
WAVES_MAX = 60


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, help="default: RINGBOUNCER_BIN or the newest build")
    parser.add_argument("--logins", type=int, default=1000, help="clients that log in at once")
    parser.add_argument("--clients", type=int, default=8, help="of pgbench")
    parser.add_argument("--rate", type=int, default=2000, help="pgbench's transactions per second; 0 is a closed loop")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--method", choices=["scram-sha-256", "plain"], default="scram-sha-256")
    parser.add_argument("--limit", type=float, default=1.2, help="largest ratio of the p99 that is fine")
    return parser.parse_args()


def message(tag: bytes, body: bytes) -> bytes:
    return tag + (len(body) + 4).to_bytes(4, "big") + body


def startup(user: str) -> bytes:
    body = (196608).to_bytes(4, "big")
    for text in ("user", user, "database", "postgres", ""):
        body += text.encode() + b"\0"
    return (len(body) + 4).to_bytes(4, "big") + body


async def read_message(reader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def scram(reader, writer):
    """A client's side of RFC 5802. Its proof is wrong: the pooler has done all its work by then."""
    first = b"n=,r=" + base64.b64encode(os.urandom(18))
    initial = b"n,," + first
    writer.write(message(b"p", b"SCRAM-SHA-256\0" + len(initial).to_bytes(4, "big") + initial))
    _, body = await read_message(reader)
    nonce = body[4:].split(b",")[0]
    proof = base64.b64encode(hmac.digest(b"no key", nonce, hashlib.sha256))
    writer.write(message(b"p", b"c=biws," + nonce + b",p=" + proof))


async def login(port: int, user: str, method: str) -> None:
    """One attempt that makes the pooler work as for a true one, and fails."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(startup(user))
        await read_message(reader)
        if method == "plain":
            writer.write(message(b"p", b"not the password\0"))
        else:
            await scram(reader, writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await read_message(reader)


async def rain(port: int, users: list[str], method: str, seconds: float, count: int) -> int:
    """Waves of logins until the time is over; how many there were."""
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        wave = [users[(done + at) % len(users)] for at in range(count)]
        await asyncio.gather(*(login(port, user, method) for user in wave), return_exceptions=True)
        done += count
    return done


def pgbench(port: int, arguments, directory: pathlib.Path):
    """Starts pgbench with a log of every transaction."""
    command = [throwaway.postgres_bin() / "pgbench", "-n", "-S", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-U", throwaway.SUPERUSER, "-c", str(arguments.clients)]
    command += ["-j", "1", "-T", str(arguments.seconds), "-l", "--log-prefix", str(directory / "log"), "postgres"]
    if arguments.rate:
        command += ["-R", str(arguments.rate)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def latencies(process, directory: pathlib.Path) -> list[int]:
    """Microseconds of every transaction, once pgbench has ended."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"pgbench failed: {errors.decode()}")
    found = []
    for path in directory.glob("log.*"):
        found += [int(line.split()[2]) for line in path.read_text().splitlines()]
        path.unlink()
    return sorted(found)


def percentile(values: list[int], part: float) -> int:
    return values[min(len(values) - 1, int(len(values) * part))]


def configuration(directory: pathlib.Path, server, users: list[str], method: str) -> str:
    secrets = "".join(f'"{user}" "{PASSWORD} of {user}"\n' for user in users)
    (directory / "users").write_text(secrets)
    rule = method.replace("plain", "password")
    (directory / "hba").write_text(f"host all {throwaway.SUPERUSER} all trust\nhost all all all {rule}\n")
    settings = 'auth_hba_file = "hba"\nauth_file = "users"\nlogin_failure_delay = 0\nlog_level = "error"\n'
    text = throwaway.ringbouncer_config(server.port, ["postgres"], 20, 10_000, settings)
    return text.replace('auth_type = "trust"', 'auth_type = "hba"')


def under_storm(arguments, port: int, target: int, users, directory) -> tuple[list[int], int]:
    """Latencies through the pooler at `port` while it rains on the one at `target`, and how many logins that were."""
    process = pgbench(port, arguments, directory)
    # Whoever logs in has machines of its own; here it must not take the time of what is measured.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    count = asyncio.run(rain(target, users, arguments.method, arguments.seconds, arguments.logins))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return latencies(process, directory), count


def fill(port: int) -> None:
    """pgbench's tables."""
    command = [throwaway.postgres_bin() / "pgbench", "-i", "-q", "-h", "127.0.0.1", "-p", str(port)]
    subprocess.run([*command, "-U", throwaway.SUPERUSER, "postgres"], check=True, stderr=subprocess.DEVNULL)


def keep_off(process: int, shards: int) -> None:
    """Keeps a process (0: this one), and those it will start, off the cores of the shards, if there are others."""
    if others := sorted(os.sched_getaffinity(0))[shards:]:
        os.sched_setaffinity(process, others)


def main() -> int:
    arguments = parse_arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    users = [f"guest{number}" for number in range(arguments.logins * WAVES_MAX)]
    print(f"{platform.platform()}, {os.cpu_count()} cores, {arguments}")
    ratios = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(throwaway.work_dir("storm"))
        server = stack.enter_context(throwaway.stopping(throwaway.start_postgres(directory)))
        fill(server.port)
        config = configuration(directory, server, users, arguments.method)
        pooler = throwaway.start_ringbouncer(directory, config, arguments.shards, binary=arguments.binary)
        port = stack.enter_context(throwaway.stopping(pooler)).port
        other = throwaway.start_ringbouncer(directory, config, arguments.shards, binary=arguments.binary)
        elsewhere = stack.enter_context(throwaway.stopping(other)).port
        keep_off(server.pid, arguments.shards)
        keep_off(0, arguments.shards)
        print("round  logins  quiet p50  p99 us  elsewhere p50  p99 us  logins  here p50  p99 us  p99 ratio")
        for number in range(arguments.rounds):
            quiet = latencies(pgbench(port, arguments, directory), directory)
            apart, count_apart = under_storm(arguments, port, elsewhere, users, directory)
            here, count = under_storm(arguments, port, port, users, directory)
            row = [percentile(values, part) for values in (quiet, apart, here) for part in (0.5, 0.99)]
            ratios.append(row[5] / row[3])
            print(f"{number:5}  {count_apart:6}  {row[0]:9}  {row[1]:6}  {row[2]:13}  {row[3]:6}  {count:6}  {row[4]:8}  {row[5]:6}  {ratios[-1]:9.2f}")
    ratio = statistics.median(ratios)
    print(f"median ratio of the p99: {ratio:.2f} (limit {arguments.limit})")
    return int(ratio > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
