// pgjdbc with its defaults: prepared statements from the fifth execution on, binary transfer, batches.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

public class Jdbc {
    interface Claim { void hold(Connection connection) throws Exception; }

    static String url, table;
    static int passed;

    static void claim(String name, Claim claim) throws Exception {
        try (Connection connection = DriverManager.getConnection(url)) {
            claim.hold(connection);
        } catch (Throwable error) {
            throw new Exception("not so: " + name, error);
        }
        passed++;
    }

    static void equal(Object found, Object expected) {
        if (!expected.equals(found)) throw new AssertionError("found " + found + ", expected " + expected);
    }

    static Object one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        table = arguments[1];

        claim("a prepared statement goes on working beyond the threshold", connection -> {
            try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int + 1, ?::text, ?::float8")) {
                for (int n = 0; n < 20; n++) {
                    statement.setInt(1, n);
                    statement.setString(2, "text " + n);
                    statement.setDouble(3, n / 2.0);
                    try (ResultSet rows = statement.executeQuery()) {
                        rows.next();
                        equal(rows.getInt(1), n + 1);
                        equal(rows.getString(2), "text " + n);
                        equal(rows.getDouble(3), n / 2.0);
                    }
                }
            }
        });

        claim("a batch is inserted whole", connection -> {
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
                for (int n = 0; n < 500; n++) {
                    insert.setInt(1, n);
                    insert.setString(2, "n" + n);
                    insert.addBatch();
                }
                equal(insert.executeBatch().length, 500);
            }
            equal(one(connection, "SELECT count(*) FROM " + table), 500L);
        });

        claim("a rolled back transaction leaves nothing", connection -> {
            connection.setAutoCommit(false);
            run(connection, "DELETE FROM " + table);
            connection.rollback();
            equal(one(connection, "SELECT count(*) FROM " + table), 500L);
            connection.commit();
        });

        claim("a cursor fetches in portions within a transaction", connection -> {
            connection.setAutoCommit(false);
            try (PreparedStatement select = connection.prepareStatement("SELECT id FROM " + table + " ORDER BY id")) {
                select.setFetchSize(50);
                int count = 0;
                try (ResultSet rows = select.executeQuery()) {
                    while (rows.next()) equal(rows.getInt(1), count++);
                }
                equal(count, 500);
            }
            connection.commit();
        });

        claim("an error leaves the connection usable", connection -> {
            try {
                run(connection, "INSERT INTO " + table + " VALUES (1, 'again')");
                throw new AssertionError("no error");
            } catch (SQLException error) {
                equal(error.getSQLState(), "23505");
            }
            equal(one(connection, "SELECT 7"), 7);
        });

        claim("a changed table disturbs no prepared statement outside of transactions", connection -> {
            String sql = "SELECT * FROM " + table + " WHERE id = ?";
            try (PreparedStatement select = connection.prepareStatement(sql)) {
                for (int n = 0; n < 30; n++) {
                    if (n == 10) run(connection, "ALTER TABLE " + table + " ADD COLUMN more int");
                    if (n == 20) run(connection, "ALTER TABLE " + table + " DROP COLUMN more");
                    select.setInt(1, n);
                    try (ResultSet rows = select.executeQuery()) {
                        rows.next();
                        equal(rows.getString(2), "n" + n);
                    }
                }
            }
        });

        ExecutorService threads = Executors.newFixedThreadPool(12);
        List<Future<Void>> results = new ArrayList<>();
        for (int thread = 0; thread < 12; thread++) {
            int number = thread;
            results.add(threads.submit((Callable<Void>) () -> {
                claimSilently(number);
                return null;
            }));
        }
        for (Future<Void> result : results) result.get();
        threads.shutdown();
        System.out.println("passed " + (passed + 1));
    }

    static void claimSilently(int number) throws Exception {
        try (Connection connection = DriverManager.getConnection(url);
                PreparedStatement update = connection.prepareStatement("UPDATE " + table + " SET text = ? WHERE id = ?");
                PreparedStatement select = connection.prepareStatement("SELECT text FROM " + table + " WHERE id = ?")) {
            for (int n = 0; n < 40; n++) {
                update.setString(1, number + " " + n);
                update.setInt(2, number);
                equal(update.executeUpdate(), 1);
                select.setInt(1, number);
                try (ResultSet rows = select.executeQuery()) {
                    rows.next();
                    equal(rows.getString(1), number + " " + n);
                }
            }
        }
    }
}
