"""psycopg 3: what an application does all day, with the driver's defaults on."""

import concurrent.futures
import contextlib
import datetime
import threading
import time

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from conftest import POOL_SIZE


def test_parameters_come_back_as_sent(connect):
    row = connect().execute("SELECT %s::int + 1, %s::text, %s::float8", (41, "forty-two", 0.5)).fetchone()
    assert row == (42, "forty-two", 0.5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**63),
        "grüße 你好 🦀 'quoted' \\backslash",
        bytes(range(256)),
        [1, None, 3],
        ["a,b", '"q"', None, ""],
        [[1, 2], [3, 4]],
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=datetime.timezone.utc),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_values_survive_the_round_trip(connect, value, binary):
    with connect().cursor(binary=binary) as cursor:
        placeholder = "%b" if binary else "%t"
        types = {"NoneType": "text", "bool": "bool", "int": "int8", "str": "text", "bytes": "bytea"}
        types |= {"date": "date", "datetime": "timestamptz"}
        if isinstance(value, list):
            cast = "text[]" if "a,b" in value else "int[]"
        else:
            cast = types[type(value).__name__]
        assert cursor.execute(f"SELECT {placeholder}::{cast}", (value,)).fetchone() == (value,)


def test_json_survives_the_round_trip(connect):
    value = {"list": [1, 2.5, None, {"nested": "ü"}], "empty": {}, "flag": True}
    assert connect().execute("SELECT %s::jsonb, %s::jsonb -> 'list' -> 0", (Jsonb(value), Jsonb(value))).fetchone() == (
        value,
        1,
    )


def test_committed_rows_stay_and_rolled_back_rows_go(connect, table, server):
    connection = connect()
    connection.execute(f"INSERT INTO {table} VALUES (1, 'kept')")
    connection.commit()
    connection.execute(f"INSERT INTO {table} VALUES (2, 'dropped')")
    connection.rollback()
    with pytest.raises(ZeroDivisionError), connection.transaction():
        connection.execute(f"INSERT INTO {table} VALUES (3, 'dropped')")
        raise ZeroDivisionError
    assert server.execute(f"SELECT id FROM {table}").fetchall() == [(1,)]


def test_savepoints_nest_inside_one_transaction(connect, table, server):
    connection = connect()
    with connection.transaction():
        connection.execute(f"INSERT INTO {table} VALUES (1, 'outer')")
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute(f"INSERT INTO {table} VALUES (1, 'again')")
        connection.execute(f"INSERT INTO {table} VALUES (2, 'outer')")
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (2,)


def test_one_transaction_stays_on_one_server_connection(connect):
    crowd = [connect(autocommit=True) for _ in range(POOL_SIZE * 2)]
    connection = connect()
    with connection.transaction():
        seen = set()
        for other in crowd:
            seen.add(connection.execute("SELECT pg_backend_pid()").fetchone())
            other.execute("SELECT 1")
    assert len(seen) == 1


@pytest.mark.parametrize("autocommit", [True, False])
def test_session_goes_on_after_an_error(connect, autocommit):
    connection = connect(autocommit=autocommit)
    for statement, error in [
        ("SELECT 1/0", psycopg.errors.DivisionByZero),
        ("SELEC 1", psycopg.errors.SyntaxError),
        ("SELECT * FROM does_not_exist", psycopg.errors.UndefinedTable),
        ("SELECT 'x'::int", psycopg.errors.InvalidTextRepresentation),
    ]:
        with pytest.raises(error):
            connection.execute(statement)
        if not autocommit:
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                connection.execute("SELECT 1")
            connection.rollback()
        assert connection.execute("SELECT %s::int", (7,)).fetchone() == (7,)


@pytest.mark.prepared
@pytest.mark.parametrize("threshold", [5, 0, 1], ids=lambda value: f"prepare_threshold={value}")
def test_prepared_statements_work_while_clients_share_servers(connect, threshold):
    clients = [connect(autocommit=True, prepare_threshold=threshold) for _ in range(POOL_SIZE * 3)]
    for turn in range(12):
        for number, client in enumerate(clients):
            assert client.execute("SELECT %s::int * 1000 + %s::int", (number, turn)).fetchone() == (number * 1000 + turn,)
            assert client.execute("SELECT %s::text", (f"client {number}",)).fetchone() == (f"client {number}",)


@pytest.mark.prepared
def test_prepared_statements_of_the_same_name_differ_between_clients(connect):
    # psycopg numbers its statements per connection: _pg3_0 is another statement for each of these.
    clients = [connect(autocommit=True, prepare_threshold=0) for _ in range(POOL_SIZE * 2)]
    queries = [sql.SQL("SELECT {} + %s::int").format(number) for number in range(len(clients))]
    for _ in range(4):
        for number, (client, query) in enumerate(zip(clients, queries)):
            assert client.execute(query, (100,)).fetchone() == (100 + number,)


@pytest.mark.prepared
def test_more_prepared_statements_than_the_driver_keeps_work(connect):
    connection = connect(autocommit=True, prepare_threshold=0)
    connection.prepared_max = 10
    for turn in range(3):
        for number in range(40):
            assert connection.execute(f"SELECT %s::int + {number}", (turn,)).fetchone() == (turn + number,)


@pytest.mark.prepared
def test_prepared_statement_that_failed_can_be_used_again(connect):
    connection = connect(autocommit=True, prepare_threshold=0)
    for divisor, expected in [(2, 5), (0, None), (5, 2), (0, None), (1, 10)]:
        if expected is None:
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 10 / %s::int", (divisor,))
        else:
            assert connection.execute("SELECT 10 / %s::int", (divisor,)).fetchone() == (expected,)


@pytest.mark.prepared
def test_executemany_uses_the_pipeline(connect, table, server):
    connection = connect()
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} VALUES (%s, %s)", [(number, str(number)) for number in range(2000)])
    connection.commit()
    assert server.execute(f"SELECT count(*), sum(id) FROM {table}").fetchone() == (2000, 1999000)


@pytest.mark.prepared
def test_executemany_returns_every_result(connect, table):
    connection = connect(autocommit=True)
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} VALUES (%s, 'x') RETURNING id", [(n,) for n in range(50)], returning=True)
        returned = [cursor.fetchone()[0]]
        while cursor.nextset():
            returned.append(cursor.fetchone()[0])
    assert returned == list(range(50))


@pytest.mark.prepared
def test_pipeline_keeps_results_in_order(connect):
    connection = connect(autocommit=True)
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(300)]
    assert [cursor.fetchone()[0] for cursor in cursors] == list(range(300))


@pytest.mark.prepared
def test_pipeline_with_an_error_skips_to_the_sync_and_goes_on(connect, table, server):
    connection = connect(autocommit=True)
    with connection.pipeline() as pipeline:
        before = connection.execute("SELECT 1")
        pipeline.sync()
        # The error surfaces wherever its answer has arrived: at the next statement or at the sync.
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/%s::int", (0,))
            connection.execute(f"INSERT INTO {table} VALUES (1, 'skipped')")
            pipeline.sync()
        with contextlib.suppress(psycopg.errors.PipelineAborted):
            pipeline.sync()
        after = connection.execute("SELECT 3")
        pipeline.sync()
        assert (before.fetchone(), after.fetchone()) == ((1,), (3,))
    assert connection.execute("SELECT 4").fetchone() == (4,)
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.prepared
def test_pipelined_transaction_is_all_or_nothing(connect, table, server):
    connection = connect(autocommit=True)
    with pytest.raises(psycopg.errors.UniqueViolation):
        with connection.pipeline(), connection.transaction():
            connection.execute(f"INSERT INTO {table} VALUES (1, 'a')")
            connection.execute(f"INSERT INTO {table} VALUES (1, 'b')")
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_copy_in_and_out_keeps_every_row(connect, table, server):
    rows = [(number, None if number % 7 == 0 else f"tab\there {number}\nüñ") for number in range(5000)]
    connection = connect()
    with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    connection.commit()
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (5000,)
    with connection.cursor().copy(f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT") as copy:
        copy.set_types(["int4", "text"])
        assert list(copy.rows()) == rows


def test_binary_copy_keeps_every_row(connect, table):
    connection = connect(autocommit=True)
    rows = [(number, "x" * (number % 100)) for number in range(1000)]
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "text"])
        for row in rows:
            copy.write_row(row)
    with connection.cursor().copy(f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT (FORMAT binary)") as copy:
        copy.set_types(["int4", "text"])
        assert list(copy.rows()) == rows


def test_copy_given_up_by_the_client_leaves_no_rows(connect, table, server):
    connection = connect(autocommit=True)
    with pytest.raises(RuntimeError, match="changed my mind"):
        with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            copy.write_row((1, "x"))
            raise RuntimeError("changed my mind")
    assert connection.execute("SELECT 1").fetchone() == (1,)
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_copy_refused_by_the_server_leaves_the_session_usable(connect, table):
    connection = connect(autocommit=True)
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            copy.write("not a number\tx\n" * 10000)
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_server_side_cursor_reads_inside_its_transaction(connect):
    connection = connect()
    with connection.transaction(), connection.cursor(name="chunks") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT generate_series(1, 1234)")
        assert sum(row[0] for row in cursor) == 1234 * 1235 // 2


def test_large_results_arrive_complete(connect):
    connection = connect(autocommit=True)
    rows = connection.execute("SELECT n, repeat('x', 1000) FROM generate_series(1, 30000) n").fetchall()
    assert len(rows) == 30000
    assert all(len(text) == 1000 for _, text in rows)
    assert [number for number, _ in rows] == list(range(1, 30001))


def test_one_value_of_many_megabytes_goes_both_ways(connect):
    value = bytes(range(256)) * (16 * 4096)
    with connect(autocommit=True).cursor(binary=True) as cursor:
        assert cursor.execute("SELECT %b::bytea", (value,)).fetchone()[0] == value


def test_cancel_stops_the_query_and_only_that(connect):
    bystander, connection = connect(autocommit=True), connect(autocommit=True)
    started, outcome = time.monotonic(), []

    def sleep():
        try:
            connection.execute("SELECT pg_sleep(40)")
        except psycopg.errors.QueryCanceled as error:
            outcome.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    wait_until_active(bystander, "SELECT pg_sleep(40)")
    connection.cancel_safe(timeout=10)
    thread.join(timeout=20)
    assert not thread.is_alive() and len(outcome) == 1
    assert time.monotonic() - started < 30
    assert connection.execute("SELECT 1").fetchone() == (1,)
    assert bystander.execute("SELECT 1").fetchone() == (1,)


def test_late_cancel_does_not_hit_another_client(connect):
    clients = [connect(autocommit=True) for _ in range(POOL_SIZE * 2)]
    for turn in range(20):
        idle, busy = clients[turn % len(clients)], clients[(turn + 1) % len(clients)]
        idle.execute("SELECT 1")
        idle.cancel_safe(timeout=10)
        assert busy.execute("SELECT pg_sleep(0.01), 5").fetchone()[1] == 5


def wait_until_active(connection, query, count=1):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s", (query,), prepare=False
        ).fetchone()
        if found[0] >= count:
            return
    raise AssertionError(f"{query} never became active")


def test_many_more_clients_than_servers_all_get_their_own_rows(target):
    def work(number):
        with psycopg.connect(**target.libpq(autocommit=True, prepare_threshold=None)) as connection:
            for turn in range(40):
                row = connection.execute("SELECT %s::int, %s::int, pg_sleep(0.001)", (number, turn)).fetchone()
                assert row[:2] == (number, turn)
        return number

    with concurrent.futures.ThreadPoolExecutor(POOL_SIZE * 12) as executor:
        assert sum(executor.map(work, range(POOL_SIZE * 12), timeout=50)) == sum(range(POOL_SIZE * 12))


def servers_of_other_entries(target):
    """Process ids of the pooler's server connections for other entries, which may lead to the same database."""
    with psycopg.connect(**target.libpq(dbname="pgbouncer", autocommit=True, prepare_threshold=None)) as console:
        console.row_factory = psycopg.rows.dict_row
        rows = console.execute("SHOW SERVERS").fetchall()
    return [int(row["remote_pid"]) for row in rows if row["database"] != target.database]


def test_pool_size_bounds_the_server_connections(target, server):
    if target.name == "postgres":
        pytest.skip("PostgreSQL itself has no pool")
    others = servers_of_other_entries(target)

    def work(_):
        with psycopg.connect(**target.libpq(autocommit=True, prepare_threshold=None)) as connection:
            for _ in range(10):
                connection.execute("SELECT pg_sleep(0.005)")

    with concurrent.futures.ThreadPoolExecutor(POOL_SIZE * 6) as executor:
        waiting = [executor.submit(work, number) for number in range(POOL_SIZE * 6)]
        highest = 0
        while not all(future.done() for future in waiting):
            count = server.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND pid <> ALL (%s::int[])",
                (others,),
            ).fetchone()[0]
            highest = max(highest, count)
        for future in waiting:
            future.result()
    assert 1 <= highest <= POOL_SIZE


@pytest.mark.tracked
def test_each_client_sees_its_own_parameters(connect):
    zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]
    encodings = ["UTF8", "LATIN1", "UTF8", "SQL_ASCII"]
    clients = []
    for number in range(POOL_SIZE * 2):
        zone, encoding = zones[number % 4], encodings[number % 4]
        client = connect(autocommit=True, application_name=f"app {number}", client_encoding=encoding)
        client.execute(f"SET TIME ZONE '{zone}'")
        client.execute("SET DateStyle = 'German'" if number % 2 else "SET DateStyle = 'ISO'")
        clients.append((client, f"app {number}", zone, encoding, "German" if number % 2 else "ISO"))
    for _ in range(3):
        for client, name, zone, encoding, style in clients:
            row = client.execute(
                "SELECT current_setting('application_name'), current_setting('TimeZone'),"
                " current_setting('client_encoding'), current_setting('DateStyle')"
            ).fetchone()
            row = tuple(value.decode() if isinstance(value, bytes) else value for value in row)
            assert row[:3] == (name, zone, encoding)
            assert row[3].startswith(style)
            assert client.info.parameter_status("TimeZone") == zone


@pytest.mark.tracked
def test_parameter_changed_in_a_rolled_back_transaction_is_back(connect):
    clients = [connect(application_name=f"app {number}") for number in range(POOL_SIZE * 2)]
    for client in clients:
        client.execute("SET application_name = 'passing'")
        client.rollback()
    for number, client in enumerate(clients):
        assert client.execute("SELECT current_setting('application_name')").fetchone() == (f"app {number}",)
        assert client.info.parameter_status("application_name") == f"app {number}"
        client.rollback()


def test_set_local_ends_with_its_transaction(connect):
    clients = [connect() for _ in range(POOL_SIZE * 2)]
    for client in clients:
        with client.transaction():
            client.execute("SET LOCAL statement_timeout = '12345ms'")
            assert client.execute("SHOW statement_timeout").fetchone() == ("12345ms",)
    for client in clients:
        assert client.execute("SHOW statement_timeout").fetchone() == ("0",)
        client.rollback()


def test_non_ascii_text_keeps_its_bytes_per_client_encoding(connect):
    utf8, latin1 = connect(autocommit=True), connect(autocommit=True, client_encoding="LATIN1")
    for _ in range(POOL_SIZE):
        assert utf8.execute("SELECT %s::text, length(%s::text)", ("äöü", "äöü")).fetchone() == ("äöü", 3)
        assert latin1.execute("SELECT %s::text, length(%s::text)", ("äöü", "äöü")).fetchone() == ("äöü", 3)


def test_notices_reach_their_client(connect):
    connection, notices = connect(autocommit=True), []
    connection.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    connection.execute("DO $$ BEGIN RAISE NOTICE 'first'; RAISE WARNING 'second'; END $$")
    assert notices == ["first", "second"]


def test_several_statements_in_one_query_give_several_results(connect):
    with connect(autocommit=True).cursor() as cursor:
        cursor.execute("SELECT 1; SELECT 2; SELECT 3")
        results = [cursor.fetchone()[0]]
        while cursor.nextset():
            results.append(cursor.fetchone()[0])
    assert results == [1, 2, 3]


def test_empty_query_and_empty_result_are_no_errors(connect):
    connection = connect(autocommit=True)
    connection.execute("")
    assert connection.execute("SELECT 1 WHERE false").fetchall() == []
    assert connection.execute("SELECT").fetchall() == [()]


def test_two_phase_commit_can_be_finished_by_another_client(connect, table, server):
    first, second = connect(), connect()
    transaction_id = first.xid(1, f"global {table}", "branch")
    first.tpc_begin(transaction_id)
    first.execute(f"INSERT INTO {table} VALUES (1, 'x')")
    first.tpc_prepare()
    first.close()
    second.tpc_commit(transaction_id)
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)


def test_client_that_leaves_in_a_transaction_rolls_it_back(connect, table, server):
    for number in range(POOL_SIZE * 2):
        leaver = connect()
        leaver.execute(f"INSERT INTO {table} VALUES ({number}, 'x')")
        leaver.close()
    connection = connect(autocommit=True)
    for _ in range(POOL_SIZE):
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert server.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
