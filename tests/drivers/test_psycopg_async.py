"""psycopg 3 under asyncio: many clients at once on one thread."""

import asyncio

import psycopg
import pytest

from conftest import POOL_SIZE


@pytest.mark.prepared
def test_async_clients_share_servers_with_prepared_statements(target, run):
    async def client(number):
        async with await psycopg.AsyncConnection.connect(**target.libpq(autocommit=True)) as connection:
            for turn in range(30):
                cursor = await connection.execute("SELECT %s::int, %s::int", (number, turn))
                assert await cursor.fetchone() == (number, turn)

    async def all_clients():
        await asyncio.gather(*(client(number) for number in range(POOL_SIZE * 10)))

    run(all_clients())


def test_abandoned_query_is_cancelled_on_the_server(target, server, run):
    query = "SELECT pg_sleep(41)"

    async def give_up():
        async with await psycopg.AsyncConnection.connect(**target.libpq(autocommit=True)) as connection:
            task = asyncio.create_task(connection.execute(query))
            while not active(server, query):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, psycopg.errors.QueryCanceled)):
                await task
            while active(server, query):
                await asyncio.sleep(0)

    run(give_up())


def active(server, query):
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"
    return server.execute(sql, (query,)).fetchone()[0]
