"""Throw-away PostgreSQL clusters and poolers for the driver tests and the load tests.

Every program runs as a child of the caller on a free port of 127.0.0.1 and is stopped by its process id. PostgreSQL
and PgBouncer refuse to run as root; root hands them to the user `postgres` (or `nobody`). Python's standard library only.
"""

import contextlib
import ctypes
import dataclasses
import glob
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 30.0
STOP_SECONDS_PER_SIGNAL = 5.0
SUPERUSER = "postgres"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class StartError(Exception):
    """A program did not start; the text ends with the last lines of its log."""


@contextlib.contextmanager
def work_dir(name):
    """A fresh directory other users can enter, removed at the end."""
    path = pathlib.Path(tempfile.mkdtemp(prefix=f"ringbouncer-{name}.", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def postgres_bin():
    """The directory of the newest PostgreSQL server programs (outside of PATH on Debian and Ubuntu)."""
    found = [pathlib.Path(path).parent for path in glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    if found:
        return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))])
    if shutil.which("pg_config"):
        path = pathlib.Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip())
        if (path / "initdb").exists():
            return path
    raise StartError("PostgreSQL's initdb not found (on Debian: apt-get install postgresql)")


def unprivileged():
    """Arguments for subprocess that drop root; nothing for everybody else."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise StartError("running as root, and neither user postgres nor nobody exists")


def libpq_free_environment():
    """The environment without the caller's libpq settings, which must not leak into what runs here."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def free_port():
    """A port nobody listens on. Somebody may still take it first, so starting is tried again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(path, lines=15):
    """The last lines of a log."""
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


@dataclasses.dataclass
class Program:
    """A running child. `pid` is the process that does the work; `stop_signals` are tried in turn."""

    name: str
    child: subprocess.Popen
    pid: int
    port: int
    log: pathlib.Path
    config: str
    version: str
    stop_signals: tuple

    def alive(self):
        return self.child.poll() is None

    def stop(self):
        for number in (*self.stop_signals, signal.SIGKILL):
            if not self.alive():
                break
            self.child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(STOP_SECONDS_PER_SIGNAL)


@contextlib.contextmanager
def stopping(program):
    """Yields the program and stops it at the end, whatever happens."""
    try:
        yield program
    finally:
        program.stop()


def first_line(*command):
    """The first line a program prints, for version strings."""
    text = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    return text.splitlines()[0] if text else "unknown"


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def start_postgres(directory, settings=None, superuser_password=None):
    """Creates a cluster under `directory` and starts it, durability off, superuser `postgres`."""
    home = directory / "postgres"
    home.mkdir()
    drop = unprivileged()
    if drop:
        os.chown(home, drop["user"], drop["group"])
    bin_dir, data = postgres_bin(), home / "data"
    init = [bin_dir / "initdb", "-D", data, "-U", SUPERUSER, "-E", "UTF8", "--locale=C", "--no-sync"]
    if superuser_password is None:
        init += ["-A", "trust"]
    else:
        password_file = home / "password"
        password_file.write_text(superuser_password + "\n")
        if drop:
            os.chown(password_file, drop["user"], drop["group"])
        init += ["-A", "scram-sha-256", f"--pwfile={password_file}"]
    run_quietly(init, home, drop)
    options = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(home),
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        **(settings or {}),
    }
    return with_free_port(lambda port: try_postgres(bin_dir, data, port, options, directory / "postgres.log", drop))


def run_quietly(command, cwd, drop):
    done = subprocess.run(
        command, cwd=cwd, env=libpq_free_environment(), capture_output=True, text=True, timeout=120, **drop
    )
    if done.returncode != 0:
        raise StartError(f"{command[0]} failed: {done.stderr.strip()}")


def with_free_port(start):
    """Calls `start(port)` until the port is really free; `start` answers None when it was taken."""
    for _ in range(5):
        program = start(free_port())
        if program is not None:
            return program
    raise StartError("five free ports in a row were taken before they could be used")


def try_postgres(bin_dir, data, port, options, log, drop):
    command = [bin_dir / "postgres", "-D", data, "-p", str(port)]
    for key, value in options.items():
        command += ["-c", f"{key}={value}"]
    child = spawn(command, data.parent, log, drop, signal.SIGQUIT)
    is_ready = lambda: subprocess.run([bin_dir / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode == 0
    if not await_ready(child, is_ready):
        child.kill()
        child.wait()
        if "could not bind" in tail(log):
            return None
        raise StartError(f"PostgreSQL did not start:\n{tail(log)}")
    version = first_line(bin_dir / "postgres", "--version")
    config = "".join(f"{key} = '{value}'\n" for key, value in options.items())
    return Program("postgres", child, child.pid, port, log, config, version, (signal.SIGINT, signal.SIGQUIT))


def spawn(command, cwd, log, drop, farewell, stdout=None):
    """Starts a child in a session of its own, so that Ctrl-C reaches only us and we stop things in order.

    Should we be killed outright, the kernel sends it `farewell`; for that, call this from a thread that lasts.
    """
    with open(log, "ab") as sink:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=libpq_free_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout or sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, int(farewell), 0, 0, 0),
            **drop,
        )


def await_ready(child, is_ready):
    """Polls until ready; False when the child has gone or time is up."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and child.poll() is None:
        if is_ready():
            return True
        time.sleep(0.02)
    return False


# --- Ringbouncer --------------------------------------------------------------------------------------------------


def ringbouncer_binary():
    """RINGBOUNCER_BIN, or the newest of the release and the debug build."""
    named = os.environ.get("RINGBOUNCER_BIN")
    if named:
        return pathlib.Path(named)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [path for path in (target / "release/ringbouncer", target / "debug/ringbouncer") if path.exists()]
    if not built:
        raise StartError("no ringbouncer binary: build one or set RINGBOUNCER_BIN")
    return max(built, key=lambda path: path.stat().st_mtime)


def ringbouncer_config(server_port, databases, pool_size, max_client_conn, extra=""):
    """A TOML file that serves `databases` of the local server to its superuser, in transaction mode; `extra` has lines for
    its first table."""
    text = (
        '[ringbouncer]\nlisten_addr = "127.0.0.1"\nlisten_port = 0\npool_mode = "transaction"\n'
        f"default_pool_size = {pool_size}\nmax_client_conn = {max_client_conn}\n"
        f'auth_type = "trust"\nadmin_users = ["{SUPERUSER}"]\n{extra}'
    )
    for name in databases:
        text += f'\n[databases.{name}]\nhost = "127.0.0.1"\nport = {server_port}\ndbname = "{name}"\n'
    return text + f"\n[users.{SUPERUSER}]\n"


def start_ringbouncer(directory, config, shards, name="ringbouncer", binary=None):
    """Starts Ringbouncer and waits for its ready line, which names the port and the process."""
    binary = binary or ringbouncer_binary()
    config_file, log = directory / f"{name}.toml", directory / f"{name}.log"
    config_file.write_text(config)
    command = [binary, "run", config_file, "--shards", str(shards)]
    child = spawn(command, directory, log, {}, signal.SIGQUIT, stdout=subprocess.PIPE)
    ready = ready_line(child)
    fields = dict(part.split("=", 1) for part in ready.split()[1:] if "=" in part)
    if "tcp" not in fields:
        child.kill()
        child.wait()
        raise StartError(f"Ringbouncer did not become ready (it printed {ready!r}):\n{tail(log)}")
    port = int(fields["tcp"].rsplit(":", 1)[1])
    pid = int(fields.get("pid", child.pid))
    version = first_line(binary, "--version")
    return Program(name, child, pid, port, log, config, version, (signal.SIGINT, signal.SIGQUIT))


def ready_line(child):
    """The first line of stdout, or what there is when time is up or the child has gone."""
    deadline = threading.Timer(START_SECONDS_MAX, child.kill)
    deadline.start()
    try:
        line = child.stdout.readline().decode(errors="replace").strip()
    finally:
        deadline.cancel()
    # Whatever else it prints must not fill the pipe and block it.
    threading.Thread(target=drain, args=(child.stdout,), daemon=True).start()
    return line if line.startswith("ready ") else ""


def drain(stream):
    with contextlib.suppress(ValueError, OSError):
        while stream.read(65536):
            pass


# --- PgBouncer ----------------------------------------------------------------------------------------------------


def pgbouncer_binary():
    """The distribution's PgBouncer, or None."""
    return shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def pgbouncer_version(binary):
    """(major, minor) of a PgBouncer."""
    match = re.search(r"(\d+)\.(\d+)", first_line(binary, "--version"))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def pgbouncer_config(binary, server_port, databases, pool_size, max_client_conn):
    """The counterpart of `ringbouncer_config`, without the lines that need the port and the directory."""
    text = "[databases]\n"
    for name in databases:
        text += f"{name} = host=127.0.0.1 port={server_port} dbname={name}\n"
    text += (
        "[pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir =\npool_mode = transaction\nauth_type = trust\n"
        f"default_pool_size = {pool_size}\nmax_client_conn = {max_client_conn}\nadmin_users = {SUPERUSER}\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    if pgbouncer_version(binary) >= (1, 21):
        text += "max_prepared_statements = 200\n"
    return text


def start_pgbouncer(directory, config, binary, name="pgbouncer", port=None):
    """Starts PgBouncer on a free port, or on one that it shares."""
    home, drop = directory / name, unprivileged()
    home.mkdir(exist_ok=True)
    users = home / "users.txt"
    users.write_text(f'"{SUPERUSER}" ""\n')
    config = f"{config}auth_file = {users}\n"
    if port is not None:
        program = try_pgbouncer(binary, home, config, port, drop)
        if program is None:
            raise StartError(f"port {port} cannot be shared")
        return program
    return with_free_port(lambda port: try_pgbouncer(binary, home, config, port, drop))


def try_pgbouncer(binary, home, config, port, drop):
    config = f"{config}listen_port = {port}\n"
    config_file, log = home / "pgbouncer.ini", home.parent / f"{home.name}.log"
    config_file.write_text(config)
    child = spawn([binary, config_file], home, log, drop, signal.SIGTERM)
    if not await_ready(child, lambda: accepts(port)):
        child.kill()
        child.wait()
        if "ddress already in use" in tail(log):
            return None
        raise StartError(f"PgBouncer did not start:\n{tail(log)}")
    version = first_line(binary, "--version")
    # SIGTERM is its immediate shutdown in every version; SIGINT waits for clients.
    return Program(home.name, child, child.pid, port, log, config, version, (signal.SIGTERM,))


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
