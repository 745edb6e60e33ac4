"""Alembic migrates through an entry in session mode while the application works through one in transaction mode."""

import threading

import alembic.command
import alembic.config
import pytest
import sqlalchemy
from sqlalchemy import pool

# psycopg prepares a statement at its sixth execution.
pytestmark = pytest.mark.prepared

ENVIRONMENT = """
from alembic import context
from sqlalchemy import create_engine, pool

engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, version_table=context.config.get_main_option("version_table"))
    with context.begin_transaction():
        context.run_migrations()
"""

MIGRATION = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = {revision!r}, {parent!r}

def upgrade():
    {upgrade}

def downgrade():
    {downgrade}
"""


@pytest.fixture
def migrations(target, tmp_path, table):
    """Alembic's configuration for three migrations of the test's table."""
    steps = [
        (f"op.add_column({table!r}, sa.Column('n', sa.Integer))", f"op.drop_column({table!r}, 'n')"),
        (
            f"op.alter_column({table!r}, 'n', type_=sa.Text, postgresql_using='n::text')",
            f"op.alter_column({table!r}, 'n', type_=sa.Integer, postgresql_using='n::int')",
        ),
        (f"op.drop_column({table!r}, 'text')", f"op.add_column({table!r}, sa.Column('text', sa.Text))"),
    ]
    versions = tmp_path / "versions"
    versions.mkdir()
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    for number, (upgrade, downgrade) in enumerate(steps, 1):
        parent = f"r{number - 1}" if number > 1 else None
        text = MIGRATION.format(revision=f"r{number}", parent=parent, upgrade=upgrade, downgrade=downgrade)
        (versions / f"r{number}.py").write_text(text)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("version_table", f"{table}_version")
    url = f"postgresql+psycopg://{target.user}@127.0.0.1:{target.port}/{target.session_database}"
    config.set_main_option("sqlalchemy.url", url)
    return config


def test_migrations_up_and_down_disturb_no_busy_client(target, migrations, table):
    options = [{"poolclass": pool.NullPool}, {"pool_pre_ping": True, "pool_size": 4}]
    url = target.url("postgresql+psycopg", connect_timeout=10)
    # Outside of transactions: there even a statement whose result changes its type is prepared anew unseen.
    engines = [sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", **more) for more in options]
    is_over, failures, done = threading.Event(), [], [0] * 6
    with engines[0].connect() as connection:
        connection.execute(sqlalchemy.text(f"INSERT INTO {table} VALUES (1, 'one')"))

    def work(number):
        engine = engines[number % 2]
        while not is_over.is_set():
            try:
                with engine.connect() as connection:
                    for _ in range(10):
                        rows = connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).all()
                        assert len(rows) == 1 and rows[0][0] == 1, rows
                done[number] += 1
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(done))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            alembic.command.upgrade(migrations, "head")
            alembic.command.downgrade(migrations, "base")
        alembic.command.upgrade(migrations, "head")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not failures and all(done)
    with engines[1].connect() as connection:
        assert list(connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).keys()) == ["id", "n"]
    for engine in engines:
        engine.dispose()
