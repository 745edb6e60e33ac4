"""Who is measured, and how each is started: the same databases, pool size and limits for everybody.

A contender is a recipe; `start` makes running processes of it. PgBouncer comes from the distribution; others are started
from a path given on the command line and are left out, with a note, when there is none.
"""

import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

import throwaway  # noqa: E402

DATABASE = "pgbench"
# PgCat and pg_doorman let nobody in without a password; everybody else ignores it.
PASSWORD = "pgbench"
# Descriptors of a pooler that are not clients: servers, rings, listeners, logs.
SPARE_FILES = 500


def max_client_conn():
    """As many as the limit on descriptors of one process allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(hard - SPARE_FILES, 120_000)


@dataclasses.dataclass(frozen=True)
class Target:
    """What stands behind the poolers, and how they are to be set up."""

    port: int
    pool_size: int
    backend: str = "postgres"
    certificate: pathlib.Path | None = None

    @property
    def key(self):
        return self.certificate.with_suffix(".key")


@dataclasses.dataclass
class Running:
    """A contender that has been started. PostgreSQL itself has no pooler to account for, hence no `pids`."""

    name: str
    port: int
    pids: list
    version: str
    config: str
    programs: list
    clients_max: int | None = None
    prepares: bool = True

    def stop(self):
        for program in self.programs:
            program.stop()

    def refusal(self, case):
        """Why this contender cannot run the case, or None."""
        if case.protocol == "prepared" and not self.prepares:
            return f"{self.version} has no prepared statements in transaction mode (they came with 1.21)"
        if self.clients_max is not None and case.clients > self.clients_max:
            return f"{case.clients} clients, but the server takes {self.clients_max}"
        return None


class Contender:
    """A recipe. `absent` says why it cannot be started here, if it cannot."""

    def __init__(self, name, binary, absent=None, is_parallel=False):
        self.name, self.binary, self.absent, self.is_parallel = name, binary, absent, is_parallel

    # Of which backend and with which certificate it can be measured.
    speaks_tls = True
    needs_postgres = False

    def refusal(self, target):
        if target.certificate and not self.speaks_tls:
            return "no TLS set up for it"
        if target.backend != "postgres" and self.needs_postgres:
            return "there is nothing between the load and the server"
        return None

    def running(self, target, programs, **more):
        first = programs[0]
        pids = [program.pid for program in programs]
        return Running(self.name, first.port, pids, first.version, first.config, programs, **more)


class Direct(Contender):
    """PostgreSQL without a pooler."""

    speaks_tls = False
    needs_postgres = True

    def __init__(self, version, clients_max):
        super().__init__("direct", None)
        self.version, self.clients_max = version, clients_max

    def start(self, _directory, target):
        return Running(self.name, target.port, [], self.version, "", [], self.clients_max)


class Ringbouncer(Contender):
    """Ours, with a number of shards."""

    def __init__(self, name, binary, shards):
        super().__init__(name, binary, None, shards > 1)
        self.shards = shards
        # Older builds, given to compare with, may not know the settings.
        self.speaks_tls = b"client_tls_sslmode" in binary.read_bytes()

    def start(self, directory, target):
        extra = ""
        if target.certificate:
            extra = f'client_tls_sslmode = "allow"\nclient_tls_cert_file = "{target.certificate}"\n'
            extra += f'client_tls_key_file = "{target.key}"\n'
        config = throwaway.ringbouncer_config(target.port, [DATABASE], target.pool_size, max_client_conn(), extra)
        program = throwaway.start_ringbouncer(directory, config, self.shards, self.name, self.binary)
        program.version += f", {self.shards} shard{'s' if self.shards > 1 else ''}"
        return self.running(target, [program])


class PgBouncer(Contender):
    """The distribution's, as one process or as several that share the port and the pool size."""

    def __init__(self, name, binary, processes):
        absent = None if binary else "not installed (on Debian: apt-get install pgbouncer)"
        super().__init__(name, binary, absent, processes > 1)
        self.processes = processes

    def start(self, directory, target):
        config = throwaway.pgbouncer_config(self.binary, target.port, [DATABASE], 1, 1)
        lines = [line for line in config.splitlines() if not line.startswith(("default_pool_size", "max_client_conn"))]
        lines.append(f"default_pool_size = {target.pool_size // self.processes}")
        lines.append(f"max_client_conn = {max_client_conn()}")
        if target.certificate:
            lines.append("client_tls_sslmode = allow")
            lines += [f"client_tls_cert_file = {target.certificate}", f"client_tls_key_file = {target.key}"]
        if self.processes > 1:
            lines.append("so_reuseport = 1")
        config = "\n".join(lines) + "\n"
        first = throwaway.start_pgbouncer(directory, config, self.binary, self.name)
        programs = [first]
        for number in range(1, self.processes):
            name = f"{self.name}-{number + 1}"
            programs.append(throwaway.start_pgbouncer(directory, config, self.binary, name, first.port))
        first.version += f", {self.processes} process{'es' if self.processes > 1 else ''}"
        prepares = throwaway.pgbouncer_version(self.binary) >= (1, 21)
        return self.running(target, programs, prepares=prepares)


class Other(Contender):
    """A pooler given by its path: writes `files` and runs `command` in a directory of its own.

    Both are templates with {port}, {server}, {pool}, {database}, {user}, {password}, {clients}, {home} and {binary}.
    """

    speaks_tls = False

    def __init__(self, name, binary, files, command, prepares=True):
        absent = None
        if not binary:
            absent = f"not given (--{name.replace('_', '-')} PATH)"
        elif not os.access(binary, os.X_OK):
            absent = f"{binary} cannot be run"
        super().__init__(name, binary, absent)
        self.files, self.command, self.prepares = files, command, prepares

    def start(self, directory, target):
        return throwaway.with_free_port(lambda port: self.try_start(directory, target, port))

    def try_start(self, directory, target, port):
        home = directory / f"{self.name}-{port}"
        home.mkdir()
        home.chmod(0o777)
        places = {
            "port": port,
            "server": target.port,
            "pool": target.pool_size,
            "database": DATABASE,
            "user": throwaway.SUPERUSER,
            "password": PASSWORD,
            "clients": max_client_conn(),
            "home": home,
            "binary": self.binary,
        }
        texts = {name: fill(text, places) for name, text in self.files.items()}
        for name, text in texts.items():
            (home / name).write_text(text)
        log, config = home / "log", "\n".join(texts.values())
        command = [fill(part, places) for part in self.command]
        child = throwaway.spawn(command, home, log, throwaway.unprivileged(), signal.SIGTERM)
        if not throwaway.await_ready(child, lambda: throwaway.accepts(port)):
            child.kill()
            child.wait()
            if "ddress already in use" in throwaway.tail(log):
                return None
            raise throwaway.StartError(f"{self.name} did not start:\n{throwaway.tail(log)}")
        version = throwaway.first_line(str(self.binary), "--version")
        program = throwaway.Program(self.name, child, child.pid, port, log, config, version, (signal.SIGTERM,))
        return self.running(target, [program], prepares=self.prepares)


def fill(text, places):
    """`str.format` would trip over the braces of configuration files."""
    for name, value in places.items():
        text = text.replace("{" + name + "}", str(value))
    return text


ODYSSEY = """daemonize no
log_format "%t %l [%i %s] (%c) %m\\n"
log_to_stdout yes
log_query no
log_session no
log_stats no
workers 1
resolvers 1
client_max {clients}
listen {
    host "127.0.0.1"
    port {port}
    backlog 4096
    tls "disable"
}
storage "server" {
    type "remote"
    host "127.0.0.1"
    port {server}
    tls "disable"
}
database "{database}" {
    user "{user}" {
        authentication "none"
        storage "server"
        storage_db "{database}"
        storage_user "{user}"
        pool "transaction"
        pool_size {pool}
        pool_discard no
        pool_reserve_prepared_statement yes
    }
}
"""

PGCAT = """[general]
host = "127.0.0.1"
port = {port}
worker_threads = 1
log_client_connections = false
log_client_disconnections = false
admin_username = "admin"
admin_password = "{password}"
[pools.{database}]
pool_mode = "transaction"
prepared_statements_cache_size = 200
query_parser_enabled = false
[pools.{database}.users.0]
username = "{user}"
password = "{password}"
pool_size = {pool}
[pools.{database}.shards.0]
servers = [["127.0.0.1", {server}, "primary"]]
database = "{database}"
"""

PGDOG = """[general]
host = "127.0.0.1"
port = {port}
workers = 1
default_pool_size = {pool}
pooler_mode = "transaction"
auth_type = "trust"
prepared_statements_limit = 200
[[databases]]
name = "{database}"
host = "127.0.0.1"
port = {server}
"""

PGDOG_USERS = """[[users]]
name = "{user}"
database = "{database}"
password = "{password}"
"""

PG_DOORMAN = """[general]
host = "127.0.0.1"
port = {port}
worker_threads = 1
max_connections = {clients}
log_client_connections = false
log_client_disconnections = false
admin_username = "admin"
admin_password = "{password}"
[pools.{database}]
server_host = "127.0.0.1"
server_port = {server}
server_database = "{database}"
pool_mode = "transaction"
[[pools.{database}.users]]
username = "{user}"
password = "{password}"
pool_size = {pool}
"""

# name: (files, command)
OTHERS = {
    "odyssey": ({"odyssey.conf": ODYSSEY}, ["{binary}", "{home}/odyssey.conf"]),
    "pgcat": ({"pgcat.toml": PGCAT}, ["{binary}", "{home}/pgcat.toml"]),
    "pgdog": (
        {"pgdog.toml": PGDOG, "users.toml": PGDOG_USERS},
        ["{binary}", "--config", "{home}/pgdog.toml", "--users", "{home}/users.toml"],
    ),
    "pg_doorman": ({"pg_doorman.toml": PG_DOORMAN}, ["{binary}", "{home}/pg_doorman.toml"]),
}


def recipes(arguments, server_version, clients_max):
    """The contenders that were asked for, in their order."""
    found = []
    for name in arguments.contenders:
        if name == "direct":
            found.append(Direct(server_version, clients_max))
        elif name == "ringbouncer":
            found += ringbouncers(arguments)
        elif name == "pgbouncer":
            binary = arguments.pgbouncer or throwaway.pgbouncer_binary()
            for count in arguments.shards:
                found.append(PgBouncer("pgbouncer" if count == 1 else f"pgbouncer-{count}", binary, count))
        elif name in OTHERS:
            files, command = OTHERS[name]
            found.append(Other(name, getattr(arguments, name), files, command))
        else:
            sys.exit(f"--contenders knows direct, ringbouncer, pgbouncer, {', '.join(OTHERS)}, not {name}")
    return found


def ringbouncers(arguments):
    binaries = {"ringbouncer": release_binary()}
    for also in arguments.also:
        name, _, path = also.partition("=")
        binaries[name] = pathlib.Path(path).resolve()
    for name, binary in binaries.items():
        for shards in arguments.shards:
            yield Ringbouncer(name if shards == 1 else f"{name}-{shards}", binary, shards)


def release_binary():
    """A debug build would measure nothing of interest."""
    named = os.environ.get("RINGBOUNCER_BIN")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", throwaway.ROOT / "target"))
    binary = pathlib.Path(named or target / "release/ringbouncer")
    if not binary.exists():
        sys.exit(f"{binary} is missing: cargo build --release, or set RINGBOUNCER_BIN")
    return binary.resolve()


def make_certificate(directory):
    """A self-signed certificate that every contender can read; None without openssl."""
    openssl = shutil.which("openssl")
    if not openssl:
        return None
    certificate = directory / "server.crt"
    key = certificate.with_suffix(".key")
    subject = ["-subj", "/CN=localhost", "-days", "2"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    throwaway.run_quietly([openssl, "req", "-x509", *curve, *subject, "-keyout", key, "-out", certificate], directory, {})
    certificate.chmod(0o644)
    key.chmod(0o644)
    return certificate
