"""SQLAlchemy over psycopg: without a pool of its own, and with one that pings."""

import concurrent.futures

import pytest
import sqlalchemy
from sqlalchemy import orm, pool

from conftest import POOL_SIZE

# psycopg prepares a statement at its sixth execution.
pytestmark = pytest.mark.prepared


@pytest.fixture(params=["NullPool", "pool_pre_ping"])
def engine(request, target):
    options = {"poolclass": pool.NullPool} if request.param == "NullPool" else {"pool_pre_ping": True, "pool_size": 8}
    engine = sqlalchemy.create_engine(target.url("postgresql+psycopg", connect_timeout=10), **options)
    yield engine
    engine.dispose()


@pytest.fixture
def notes(engine, table):
    return sqlalchemy.Table(table, sqlalchemy.MetaData(), autoload_with=engine)


def test_reflection_finds_the_columns(notes):
    assert [column.name for column in notes.columns] == ["id", "text"]


def test_rows_are_inserted_selected_updated_and_deleted(engine, notes):
    with engine.begin() as connection:
        connection.execute(notes.insert(), [{"id": number, "text": f"n{number}"} for number in range(300)])
    with engine.begin() as connection:
        connection.execute(notes.update().where(notes.c.id < 10).values(text="low"))
        connection.execute(notes.delete().where(notes.c.id >= 20))
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.select(notes).order_by(notes.c.id)).all()
    assert rows == [(number, "low" if number < 10 else f"n{number}") for number in range(20)]


def test_failed_transaction_leaves_nothing_and_the_engine_usable(engine, notes):
    with pytest.raises(sqlalchemy.exc.IntegrityError), engine.begin() as connection:
        connection.execute(notes.insert(), {"id": 1, "text": "a"})
        connection.execute(notes.insert(), {"id": 1, "text": "b"})
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(notes)).scalar() == 0


def test_orm_sessions_work_in_many_threads(engine, notes):
    registry = orm.registry()

    class Note:
        pass

    registry.map_imperatively(Note, notes)

    def work(number):
        with orm.Session(engine) as session:
            note = Note()
            note.id, note.text = number, "new"
            session.add(note)
            session.commit()
            note.text = f"changed {number}"
            session.commit()
            return session.get(Note, number).text

    with concurrent.futures.ThreadPoolExecutor(POOL_SIZE * 2) as executor:
        assert list(executor.map(work, range(60), timeout=50)) == [f"changed {number}" for number in range(60)]
    registry.dispose()


def test_streamed_result_reads_everything(engine):
    with engine.connect() as connection:
        result = connection.execution_options(stream_results=True, yield_per=100).execute(
            sqlalchemy.text("SELECT generate_series(1, 2500)")
        )
        assert sum(row[0] for row in result) == 2500 * 2501 // 2


def test_serializable_isolation_of_one_engine_does_not_leak_to_another(target, engine):
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    for _ in range(POOL_SIZE):
        with strict.connect() as connection:
            assert connection.execute(sqlalchemy.text("SHOW transaction_isolation")).scalar() == "serializable"
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SHOW transaction_isolation")).scalar() == "read committed"
