#!/usr/bin/env python3
"""What a storm of logins costs running queries: pgbench's latency through Ringbouncer while logins rain.

Every round measures three things, one after the other: `quiet` is pgbench alone; in `elsewhere` the logins rain on a second
Ringbouncer of the same machine, so that queries suffer from all that is not the pooler's doing (the load of the machine, which
also has to make the connections); in `here` they rain on the one that serves the queries. As many clients as --logins says log
in at once, over and over, each as a user of its own whose secret is the most expensive kind: plain text, for which the pooler has
to stretch a key; no user comes twice within a round. Their passwords are wrong, so that PostgreSQL is not asked. With --right they
are good: the users share one pool, whose servers want SCRAM as well. With --tls each of them shakes hands first. PostgreSQL, pgbench and those who log in are kept off the cores
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
import ssl
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

import contenders  # noqa: E402
import throwaway  # noqa: E402

PASSWORD = "a password for everybody"
SERVER_PASSWORD = "of the superuser"
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
    parser.add_argument("--right", action="store_true", help="log in with the right password")
    parser.add_argument("--tls", action="store_true", help="log in over TLS, every time with a full handshake")
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


def proof_of(password: str, challenge: bytes, without_proof: bytes, initial: bytes) -> bytes:
    """The proof that whoever logs in knows the password (RFC 5802, section 3)."""
    fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
    client_key = hmac.digest(salted, b"Client Key", hashlib.sha256)
    signed = b",".join((initial, challenge, without_proof))
    signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, hashlib.sha256)
    return bytes(one ^ other for one, other in zip(client_key, signature, strict=True))


async def scram(reader, writer, password: str | None):
    """A client's side of RFC 5802. Without a password the proof is wrong: the pooler has done all its work by then."""
    initial = b"n=,r=" + base64.b64encode(os.urandom(18))
    first = b"n,," + initial
    writer.write(message(b"p", b"SCRAM-SHA-256\0" + len(first).to_bytes(4, "big") + first))
    _, body = await read_message(reader)
    challenge = body[4:]
    without_proof = b"c=biws," + challenge.split(b",")[0]
    if password is None:
        proof = hmac.digest(b"no key", challenge, hashlib.sha256)
    else:
        proof = proof_of(password, challenge, without_proof, initial)
    writer.write(message(b"p", without_proof + b",p=" + base64.b64encode(proof)))


async def shake_hands(reader, writer):
    writer.write((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
    if await reader.readexactly(1) != b"S":
        raise ConnectionError("TLS refused")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    await writer.start_tls(context)


async def login(port: int, user: str, arguments) -> bool:
    """One attempt; whether the pooler let it in. Without --right it makes the pooler work as for a true one, and fails."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    password = f"{PASSWORD} of {user}" if arguments.right else None
    with contextlib.closing(writer):
        if arguments.tls:
            await shake_hands(reader, writer)
        writer.write(startup(user))
        await read_message(reader)
        if arguments.method == "plain":
            writer.write(message(b"p", (password or "not the password").encode() + b"\0"))
        else:
            await scram(reader, writer, password)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                tag, _ = await read_message(reader)
                if tag == b"Z":
                    return True
        return False


async def rain(port: int, users: list[str], arguments) -> tuple[int, int]:
    """Waves of logins until the time is over: how many there were, and how many ended as they should."""
    until, done, good = time.monotonic() + arguments.seconds, 0, 0
    while time.monotonic() < until:
        wave = [users[(done + at) % len(users)] for at in range(arguments.logins)]
        outcomes = await asyncio.gather(*(login(port, user, arguments) for user in wave), return_exceptions=True)
        done += len(wave)
        good += sum(outcome is arguments.right for outcome in outcomes)
    return done, good


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


def configuration(directory: pathlib.Path, server, users: list[str], arguments) -> str:
    secrets = "".join(f'"{user}" "{PASSWORD} of {user}"\n' for user in users)
    (directory / "users").write_text(secrets)
    rule = arguments.method.replace("plain", "password")
    (directory / "hba").write_text(f"host all {throwaway.SUPERUSER} all trust\nhost all all all {rule}\n")
    settings = 'auth_hba_file = "hba"\nauth_file = "users"\nlogin_failure_delay = 0\nlog_level = "error"\n'
    if others_than(arguments.shards):
        settings += f"cpus = {sorted(os.sched_getaffinity(0))[: arguments.shards]}\n"
    if arguments.tls:
        certificate = contenders.make_certificate(directory)
        settings += f'client_tls_sslmode = "allow"\nclient_tls_cert_file = "{certificate}"\nclient_tls_key_file = "{certificate.with_suffix(".key")}"\n'
    text = throwaway.ringbouncer_config(server.port, ["postgres"], 20, 10_000, settings)
    forced = f'dbname = "postgres"\nuser = "{throwaway.SUPERUSER}"\npassword = "{SERVER_PASSWORD}"\n'
    text = text.replace('dbname = "postgres"\n', forced)
    return text.replace('auth_type = "trust"', 'auth_type = "hba"')


def under_storm(arguments, port: int, target: int, users, directory) -> tuple[list[int], int]:
    """Latencies through the pooler at `port` while it rains on the one at `target`, and how many logins that were."""
    process = pgbench(port, arguments, directory)
    # Whoever logs in has machines of its own; here it must not take the time of what is measured.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    count, good = asyncio.run(rain(target, users, arguments))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if good != count:
        sys.exit(f"{count - good} of {count} logins did not end as they should")
    return latencies(process, directory), count


def fill(port: int) -> None:
    """pgbench's tables."""
    command = [throwaway.postgres_bin() / "pgbench", "-i", "-q", "-h", "127.0.0.1", "-p", str(port)]
    environment = {**throwaway.libpq_free_environment(), "PGPASSWORD": SERVER_PASSWORD}
    subprocess.run([*command, "-U", throwaway.SUPERUSER, "postgres"], check=True, stderr=subprocess.DEVNULL, env=environment)


def others_than(shards: int) -> list[int]:
    """The cores that are left when each shard has one."""
    return sorted(os.sched_getaffinity(0))[shards:]


def keep_off(process: int, shards: int) -> None:
    """Keeps a process (0: this one), and those it will start, off the cores of the shards, if there are others."""
    if others := others_than(shards):
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
        server = stack.enter_context(throwaway.stopping(throwaway.start_postgres(directory, None, SERVER_PASSWORD)))
        fill(server.port)
        config = configuration(directory, server, users, arguments)
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
