"""asyncpg with its statement cache left on, and its own pool on top of ours."""

import asyncio
import datetime
import decimal
import json
import uuid

import asyncpg
import pytest

from conftest import POOL_SIZE, TARGET

# asyncpg prepares every query under a name unless told otherwise.
pytestmark = pytest.mark.prepared

OPENED = []


async def connect(target, **parameters):
    connection = await asyncpg.connect(**target.asyncpg(**parameters))
    OPENED.append(connection)
    return connection


@pytest.fixture
def run():
    """Runs a coroutine under a deadline; what it left open after a failure is dropped inside its event loop."""

    async def bounded(coroutine):
        try:
            return await asyncio.wait_for(coroutine, 45)
        finally:
            while OPENED:
                OPENED.pop().terminate()

    return lambda coroutine: asyncio.run(bounded(coroutine))


def test_values_survive_the_round_trip(target, run):
    values = [
        ("bool", True),
        ("int8", -(2**63)),
        ("text", "grüße 你好 🦀"),
        ("bytea", bytes(range(256))),
        ("numeric", decimal.Decimal("12345678901234567890.123456789")),
        ("uuid", uuid.UUID(int=2**127 + 5)),
        ("timestamptz", datetime.datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=datetime.timezone.utc)),
        ("int[]", [1, None, 3]),
        ("text[]", ["a,b", None, '"']),
        ("text", None),
    ]

    async def work():
        connection = await connect(target)
        for cast, value in values:
            assert await connection.fetchval(f"SELECT $1::{cast}", value) == value, cast
        await connection.close()

    run(work())


def test_json_codec_of_the_application_works(target, run):
    async def work():
        connection = await connect(target)
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        value = {"a": [1, None, "ü"]}
        assert await connection.fetchval("SELECT $1::jsonb", value) == value
        await connection.close()

    run(work())


def test_statement_cache_works_while_clients_share_servers(target, run):
    async def client(number):
        connection = await connect(target)
        for turn in range(25):
            assert await connection.fetchval("SELECT $1::int * 1000 + $2::int", number, turn) == number * 1000 + turn
            assert await connection.fetchval(f"SELECT {number} + $1::int", turn) == number + turn
        await connection.close()

    async def work():
        await asyncio.gather(*(client(number) for number in range(POOL_SIZE * 8)))

    run(work())


def test_overflowing_statement_cache_works(target, run):
    async def work():
        connection = await connect(target, statement_cache_size=5)
        for turn in range(4):
            for number in range(20):
                assert await connection.fetchval(f"SELECT $1::int + {number}", turn) == turn + number
        await connection.close()

    run(work())


def test_explicit_prepared_statement_lives_as_long_as_its_client(target, run):
    async def work():
        crowd = [await connect(target) for _ in range(POOL_SIZE * 2)]
        statements = []
        for number, connection in enumerate(crowd):
            # Preparing ends with a Flush, not a Sync: the server stays with its client until the first execution.
            statements.append(await connection.prepare(f"SELECT {number} + $1::int"))
            assert await statements[number].fetchval(0) == number
        for turn in range(5):
            for number, statement in enumerate(statements):
                assert await statement.fetchval(turn) == number + turn
        for connection in crowd:
            await connection.close()

    run(work())


def test_transactions_commit_and_roll_back(target, table, server, run):
    async def work():
        connection = await connect(target)
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {table} VALUES ($1, $2)", 1, "kept")
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute(f"INSERT INTO {table} VALUES ($1, $2)", 1, "again")
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute(f"INSERT INTO {table} VALUES ($1, $2)", 2, "dropped")
                raise ZeroDivisionError
        await connection.close()

    run(work())
    assert server.execute(f"SELECT id, text FROM {table}").fetchall() == [(1, "kept")]


def test_session_goes_on_after_errors(target, run):
    async def work():
        connection = await connect(target)
        for divisor in (1, 0, 2, 0, 5):
            if divisor:
                assert await connection.fetchval("SELECT 10 / $1::int", divisor) == 10 // divisor
            else:
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await connection.fetchval("SELECT 10 / $1::int", divisor)
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.fetch("SELECT * FROM does_not_exist")
        await connection.close()

    run(work())


def test_copy_in_and_out_keeps_every_row(target, table, run):
    rows = [(number, f"row {number}" if number % 5 else None) for number in range(5000)]

    async def work():
        connection = await connect(target)
        await connection.copy_records_to_table(table, records=rows)
        parts = []

        async def collect(data):
            parts.append(data)

        await connection.copy_from_query(f"SELECT * FROM {table} ORDER BY id", output=collect, format="csv")
        await connection.close()
        return b"".join(parts).decode().splitlines()

    assert run(work()) == [f"{number},{text or ''}" for number, text in rows]


def test_cursor_reads_inside_its_transaction(target, run):
    async def work():
        connection = await connect(target)
        total = 0
        async with connection.transaction():
            async for row in connection.cursor("SELECT generate_series(1, $1::int)", 1000, prefetch=50):
                total += row[0]
        await connection.close()
        return total

    assert run(work()) == 500500


def test_timeout_cancels_the_query_and_leaves_the_session_usable(target, server, run):
    async def work():
        connection = await connect(target)
        with pytest.raises(asyncio.TimeoutError):
            await connection.fetchval("SELECT pg_sleep(42)", timeout=0.3)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()

    run(work())
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(42)'"
    assert server.execute(sql).fetchone() == (0,)


def test_executemany_inserts_all_or_nothing(target, table, server, run):
    async def work():
        connection = await connect(target)
        await connection.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(n, str(n)) for n in range(1000)])
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(5000, "x"), (5, "y")])
        await connection.close()

    run(work())
    assert server.execute(f"SELECT count(*), max(id) FROM {table}").fetchone() == (1000, 999)


def test_asyncpg_pool_over_our_pool_serves_everybody(target, run):
    # The pool resets each connection on release: several statements, among them ones that need no rows.
    async def work():
        async with asyncpg.create_pool(**target.asyncpg(), min_size=2, max_size=POOL_SIZE * 3) as pool:
            async def one(number):
                async with pool.acquire() as connection, connection.transaction():
                    return await connection.fetchval("SELECT $1::int", number)

            return await asyncio.gather(*(one(number) for number in range(200)))

    assert run(work()) == list(range(200))


@pytest.mark.tracked
def test_each_client_sees_its_own_start_up_settings(target, run):
    async def work():
        clients = []
        for number in range(POOL_SIZE * 2):
            settings = {"application_name": f"async {number}", "timezone": "Asia/Tokyo" if number % 2 else "UTC"}
            clients.append((settings, await connect(target, server_settings=settings)))
        for _ in range(3):
            for settings, connection in clients:
                for name, value in settings.items():
                    assert await connection.fetchval("SELECT current_setting($1)", name) == value
        for _, connection in clients:
            await connection.close()

    run(work())


def test_large_results_arrive_complete(target, run):
    async def work():
        connection = await connect(target)
        rows = await connection.fetch("SELECT n, repeat('y', 1000) FROM generate_series(1, $1::int) n", 20000)
        await connection.close()
        return rows

    rows = run(work())
    assert [row[0] for row in rows] == list(range(1, 20001)) and all(len(row[1]) == 1000 for row in rows)


MIGRATIONS = [
    "ADD COLUMN extra int DEFAULT 7",
    "ALTER COLUMN extra TYPE bigint",
    "ALTER COLUMN extra TYPE text",
    "DROP COLUMN extra",
]


@pytest.mark.skipif(TARGET == "pgbouncer", reason="0A000 reaches its clients")
def test_migrations_are_no_affair_of_busy_clients(target, table, server, run):
    # asyncpg asks for binary values of the types that it was told once, and prepares anew when it is told 0A000.
    server.execute(f"INSERT INTO {table} SELECT n, 'text ' || n FROM generate_series(0, 99) n")

    async def work():
        over = asyncio.Event()
        seen = set()

        async def ask(connection, number):
            count = 0
            while not over.is_set():
                row = await connection.fetchrow(f"SELECT * FROM {table} WHERE id = $1", number)
                assert row[0] == number and row[1] == f"text {number}", row
                assert row.get("extra") in (None, 7, "7"), row
                seen.add(type(row.get("extra")))
                count += 1
            return count

        async def migrate():
            connection = await connect(target)
            for _ in range(5):
                for change in MIGRATIONS:
                    await connection.execute(f"ALTER TABLE {table} {change}")
                    await asyncio.sleep(0.05)
            over.set()

        clients = [await connect(target) for _ in range(POOL_SIZE * 4)]
        asking = [ask(connection, number) for number, connection in enumerate(clients)]
        _, *counts = await asyncio.gather(migrate(), *asking)
        assert min(counts) > 5, counts
        return seen

    assert run(work()) == {type(None), int, str}
