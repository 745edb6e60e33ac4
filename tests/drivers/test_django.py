"""Django: its ORM through the entry in transaction mode, with prepared statements on, its schema editor through session mode."""

import concurrent.futures

import django
import pytest
from django.conf import settings

from conftest import POOL_SIZE

pytestmark = pytest.mark.prepared


@pytest.fixture(scope="module")
def note(target):
    """A model, `Note(id, title, stars)`, and its table."""

    def entry(name):
        return {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": str(target.port),
            "USER": target.user,
            "NAME": name,
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
            # A cursor of the server's would outlive its transaction.
            "DISABLE_SERVER_SIDE_CURSORS": True,
            "OPTIONS": {"server_side_binding": True, "prepare_threshold": 1, "connect_timeout": 10},
        }

    databases = {"default": entry(target.database), "migrations": entry(target.session_database)}
    settings.configure(DATABASES=databases, USE_TZ=True, TIME_ZONE="Europe/Vienna", DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
    django.setup()
    from django.db import connections, models

    class Note(models.Model):
        title = models.CharField(max_length=100)
        stars = models.IntegerField(default=0)
        created = models.DateTimeField(auto_now_add=True)

        class Meta:
            app_label = "drivers"

    with connections["migrations"].schema_editor() as editor:
        editor.create_model(Note)
    yield Note
    with connections["migrations"].schema_editor() as editor:
        editor.delete_model(Note)
    connections.close_all()


@pytest.fixture(autouse=True)
def empty(note):
    note.objects.all().delete()


def test_rows_are_created_filtered_updated_and_deleted(note):
    from django.db.models import F, Sum

    note.objects.bulk_create(note(title=f"n{number}", stars=number) for number in range(300))
    assert note.objects.filter(stars__gte=290).count() == 10
    note.objects.filter(stars__lt=10).update(stars=F("stars") + 1000)
    assert note.objects.filter(title="n3").get().stars == 1003
    note.objects.exclude(stars__gte=1000).delete()
    assert note.objects.aggregate(sum=Sum("stars"))["sum"] == sum(range(1000, 1010))
    for _ in range(5):
        assert [row.title for row in note.objects.order_by("stars")[:2]] == ["n0", "n1"]


def test_failed_atomic_block_leaves_nothing_and_the_connection_usable(note):
    from django.db import IntegrityError, transaction

    with pytest.raises(IntegrityError), transaction.atomic():
        first = note.objects.create(title="a")
        note.objects.create(title="kept for a moment")
        note.objects.create(id=first.id, title="again")
    assert note.objects.count() == 0
    with transaction.atomic():
        note.objects.create(title="outer")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            note.objects.create(title="inner")
            raise ZeroDivisionError
    assert [row.title for row in note.objects.all()] == ["outer"]


def test_locked_rows_lose_no_update_of_many_threads(note):
    from django.db import connection, transaction

    row = note.objects.create(title="counter")

    def work(_):
        try:
            for _ in range(5):
                with transaction.atomic():
                    locked = note.objects.select_for_update().get(pk=row.pk)
                    locked.stars += 1
                    locked.save()
            return note.objects.get(pk=row.pk).stars >= 5
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(POOL_SIZE * 2) as executor:
        assert all(executor.map(work, range(POOL_SIZE * 4), timeout=50))
    assert note.objects.get(pk=row.pk).stars == POOL_SIZE * 4 * 5


def test_time_zone_of_the_connection_holds_on_every_server(note):
    from django.db import connection

    def work(_):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SHOW timezone")
                return cursor.fetchone()[0]
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(POOL_SIZE * 2) as executor:
        # With USE_TZ Django speaks UTC to the server.
        assert set(executor.map(work, range(POOL_SIZE * 4), timeout=50)) == {"UTC"}


def test_column_added_meanwhile_disturbs_no_query(note):
    from django.db import connections, models

    note.objects.create(title="before")
    for _ in range(4):
        assert note.objects.filter(title="before").count() == 1
    field = models.IntegerField(null=True)
    field.set_attributes_from_name("extra")
    with connections["migrations"].schema_editor() as editor:
        editor.add_field(note, field)
    assert [row.title for row in note.objects.raw(f"SELECT * FROM {note._meta.db_table}")] == ["before"]
    with connections["migrations"].schema_editor() as editor:
        editor.remove_field(note, field)
    assert [row.title for row in note.objects.raw(f"SELECT * FROM {note._meta.db_table}")] == ["before"]
