"""A throw-away PostgreSQL and the pooler in front of it, once per session; every test gets tables of its own."""

import asyncio
import dataclasses
import itertools
import os
import pathlib
import signal
import sys

import psycopg
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import throwaway  # noqa: E402

# Fewer than most tests have clients, so that server connections change hands.
POOL_SIZE = 5
DATABASE = "drivers"
SESSION_DATABASE = "migrations"
TARGET = os.environ.get("RINGBOUNCER_TEST_TARGET", "ringbouncer")
SHARDS = int(os.environ.get("RINGBOUNCER_SHARDS", "3"))


def pytest_sessionstart():
    """Lets a SIGTERM pass through the fixtures that stop the servers."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the tests connect: `port` is the pooler's, `server_port` PostgreSQL's own."""

    name: str
    port: int
    server_port: int
    user: str = throwaway.SUPERUSER
    database: str = DATABASE
    # The same database, each client with a server connection of its own: for migrations.
    session_database: str = DATABASE

    def url(self, scheme="postgresql", **parameters):
        query = "&".join(f"{key}={value}" for key, value in parameters.items())
        return f"{scheme}://{self.user}@127.0.0.1:{self.port}/{self.database}" + (f"?{query}" if query else "")

    def libpq(self, **parameters):
        """Keyword arguments for psycopg.connect, with a connect deadline."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "dbname": self.database,
            "connect_timeout": 10,
            **parameters,
        }

    def asyncpg(self, **parameters):
        """Keyword arguments for asyncpg.connect, with deadlines."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "database": self.database,
            "timeout": 10,
            "command_timeout": 20,
            "ssl": False,
            **parameters,
        }

    def environment(self):
        """An environment for psql and pgbench."""
        return throwaway.libpq_free_environment() | {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.database,
            "PGCONNECT_TIMEOUT": "10",
        }


@pytest.fixture(scope="session")
def target():
    with throwaway.work_dir("drivers") as directory:
        server = throwaway.start_postgres(directory, {"max_connections": "100", "max_prepared_transactions": "10"})
        with throwaway.stopping(server):
            create_database(server.port)
            yield from pooled(directory, server)


def create_database(port):
    with psycopg.connect(host="127.0.0.1", port=port, user=throwaway.SUPERUSER, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")


def pooled(directory, server):
    if TARGET == "postgres":
        yield Target(TARGET, server.port, server.port)
        return
    if TARGET == "ringbouncer":
        config = throwaway.ringbouncer_config(server.port, [DATABASE], POOL_SIZE, 500) + (
            f'\n[databases.{SESSION_DATABASE}]\nhost = "127.0.0.1"\nport = {server.port}\n'
            f'dbname = "{DATABASE}"\npool_mode = "session"\n'
        )
        pooler = throwaway.start_ringbouncer(directory, config, SHARDS)
    elif TARGET == "pgbouncer":
        binary = throwaway.pgbouncer_binary() or pytest.exit("pgbouncer is not installed", 1)
        config = throwaway.pgbouncer_config(binary, server.port, [DATABASE], POOL_SIZE, 500)
        pooler = throwaway.start_pgbouncer(directory, config, binary)
    else:
        pytest.exit(f"RINGBOUNCER_TEST_TARGET={TARGET}: not ringbouncer, postgres or pgbouncer", 1)
    with throwaway.stopping(pooler):
        session_database = SESSION_DATABASE if TARGET == "ringbouncer" else DATABASE
        yield Target(TARGET, pooler.port, server.port, session_database=session_database)
        print(f"\nlast lines of the log of {TARGET}:\n{throwaway.tail(pooler.log)}")
        assert pooler.alive(), f"{TARGET} died during the tests"


TABLE_NUMBERS = itertools.count(1)


@pytest.fixture
def table(target):
    """The name of a table `(id int primary key, text text)` of this test's own."""
    name = f"t{next(TABLE_NUMBERS)}"
    with server_connection(target) as connection:
        connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, text text)")
    return name


@pytest.fixture
def server(target):
    """A connection past the pooler, to look at what really happened."""
    with server_connection(target) as connection:
        yield connection


def server_connection(target):
    return psycopg.connect(**target.libpq(port=target.server_port), autocommit=True)


@pytest.fixture
def connect(target):
    """`connect(**parameters)` opens psycopg connections that are closed at the end of the test."""
    opened = []

    def open_one(**parameters):
        connection = psycopg.connect(**target.libpq(**parameters))
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture
def run():
    """Runs a coroutine under a deadline below that of the test, so that the traceback shows the await that hung."""
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 45))
