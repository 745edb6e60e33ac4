// node-postgres through the pooler at RINGBOUNCER_TEST_URL; test_programs.py starts both.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { Client, Pool } = require("pg");
const Cursor = require("pg-cursor");

const connectionString = process.env.RINGBOUNCER_TEST_URL;
const poolSize = Number(process.env.RINGBOUNCER_TEST_POOL_SIZE);
// No query_timeout: its timer outlives a cursor; every test has a deadline.
const options = { connectionString, connectionTimeoutMillis: 10000 };
const deadline = { timeout: 40000 };

async function withClient(work, more = {}) {
  const client = new Client({ ...options, ...more });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

async function withClients(count, work) {
  const clients = Array.from({ length: count }, () => new Client(options));
  await Promise.all(clients.map((client) => client.connect()));
  try {
    return await work(clients);
  } finally {
    await Promise.all(clients.map((client) => client.end()));
  }
}

test("parameters come back as sent", deadline, () =>
  withClient(async (client) => {
    const values = [42, "grüße 🦀", null, true, [1, 2, 3], Buffer.from([0, 255, 10]), { a: [1, null] }];
    const { rows } = await client.query(
      "SELECT $1::int a, $2::text b, $3::text c, $4::bool d, $5::int[] e, $6::bytea f, $7::jsonb g",
      values,
    );
    assert.deepEqual(Object.values(rows[0]), values);
  }),
);

test("named statements work while clients share servers", deadline, () =>
  withClients(poolSize * 3, async (clients) => {
    for (let turn = 0; turn < 10; turn++) {
      await Promise.all(
        clients.map(async (client, number) => {
          const query = { name: "sum", text: "SELECT $1::int + $2::int AS sum", values: [number, turn] };
          assert.equal((await client.query(query)).rows[0].sum, number + turn);
        }),
      );
    }
  }),
);

test("the same statement name means another statement for another client", deadline, () =>
  withClients(poolSize * 2, async (clients) => {
    for (let turn = 0; turn < 5; turn++) {
      for (const [number, client] of clients.entries()) {
        const query = { name: "mine", text: `SELECT ${number} * 10 + $1::int AS n`, values: [turn] };
        assert.equal((await client.query(query)).rows[0].n, number * 10 + turn);
      }
    }
  }),
);

test("transactions commit and roll back", deadline, () =>
  withClient(async (client) => {
    await client.query("CREATE TABLE node_rows (id int PRIMARY KEY)");
    await client.query("BEGIN");
    await client.query("INSERT INTO node_rows VALUES ($1)", [1]);
    await client.query("COMMIT");
    await client.query("BEGIN");
    await client.query("INSERT INTO node_rows VALUES ($1)", [2]);
    await client.query("ROLLBACK");
    assert.deepEqual((await client.query("SELECT id FROM node_rows")).rows, [{ id: 1 }]);
    await client.query("DROP TABLE node_rows");
  }),
);

test("an error leaves the session usable", deadline, () =>
  withClient(async (client) => {
    for (const [text, code] of [["SELECT 1/0", "22012"], ["SELEC", "42601"], ["SELECT * FROM missing", "42P01"]]) {
      await assert.rejects(client.query(text), { code });
      await assert.rejects(client.query({ text, queryMode: "extended" }), { code });
      assert.equal((await client.query("SELECT $1::int AS n", [5])).rows[0].n, 5);
    }
  }),
);

test("an error in a transaction fails it until its end", deadline, () =>
  withClient(async (client) => {
    await client.query("BEGIN");
    await assert.rejects(client.query("SELECT 1/0"), { code: "22012" });
    await assert.rejects(client.query("SELECT 1"), { code: "25P02" });
    await client.query("ROLLBACK");
    assert.equal((await client.query("SELECT 1 AS n")).rows[0].n, 1);
  }),
);

test("a named statement that failed can be used again", deadline, () =>
  withClient(async (client) => {
    const divide = (by) => client.query({ name: "divide", text: "SELECT 10 / $1::int AS n", values: [by] });
    assert.equal((await divide(2)).rows[0].n, 5);
    await assert.rejects(divide(0), { code: "22012" });
    assert.equal((await divide(5)).rows[0].n, 2);
  }),
);

test("queries sent without waiting are answered in order", deadline, () =>
  withClient(async (client) => {
    const numbers = Array.from({ length: 200 }, (_, number) => number);
    const results = await Promise.all(numbers.map((number) => client.query("SELECT $1::int AS n", [number])));
    assert.deepEqual(results.map((result) => result.rows[0].n), numbers);
  }),
);

test("a pool over our pool serves everybody", deadline, async () => {
  const pool = new Pool({ ...options, max: poolSize * 3 });
  try {
    const numbers = Array.from({ length: 300 }, (_, number) => number);
    const results = await Promise.all(numbers.map((number) => pool.query("SELECT $1::int AS n", [number])));
    assert.deepEqual(results.map((result) => result.rows[0].n), numbers);
  } finally {
    await pool.end();
  }
});

test("a cursor reads inside its transaction", deadline, () =>
  withClient(async (client) => {
    await client.query("BEGIN");
    const cursor = client.query(new Cursor("SELECT n FROM generate_series(1, $1::int) n", [1050]));
    let total = 0;
    for (let rows = await cursor.read(100); rows.length > 0; rows = await cursor.read(100)) {
      total += rows.length;
    }
    await cursor.close();
    await client.query("COMMIT");
    assert.equal(total, 1050);
  }),
);

test("a cursor closed half way leaves the session usable", deadline, () =>
  withClient(async (client) => {
    for (let turn = 0; turn < 5; turn++) {
      const cursor = client.query(new Cursor("SELECT generate_series(1, 100000) AS n"));
      assert.equal((await cursor.read(10)).length, 10);
      await cursor.close();
      assert.equal((await client.query("SELECT 1 AS n")).rows[0].n, 1);
    }
  }),
);

test("several statements in one query give several results", deadline, () =>
  withClient(async (client) => {
    const results = await client.query("SELECT 1 AS n; SELECT 2 AS n");
    assert.deepEqual(results.map((result) => result.rows[0].n), [1, 2]);
  }),
);

test("a large result arrives complete", deadline, () =>
  withClient(async (client) => {
    const { rows } = await client.query("SELECT n, repeat('z', 1000) AS t FROM generate_series(1, 20000) n");
    assert.equal(rows.length, 20000);
    assert.ok(rows.every((row, index) => row.n === index + 1 && row.t.length === 1000));
  }),
);

test("a statement timeout of one transaction ends the query", deadline, () =>
  withClient(async (client) => {
    await client.query("BEGIN");
    await client.query("SET LOCAL statement_timeout = 100");
    await assert.rejects(client.query("SELECT pg_sleep(30)"), { code: "57014" });
    await client.query("ROLLBACK");
    assert.equal((await client.query("SELECT 1 AS n")).rows[0].n, 1);
  }),
);

test("each client sees its own application name", deadline, async () => {
  const clients = Array.from(
    { length: poolSize * 2 },
    (_, number) => new Client({ ...options, application_name: `node ${number}` }),
  );
  await Promise.all(clients.map((client) => client.connect()));
  try {
    for (let turn = 0; turn < 3; turn++) {
      for (const [number, client] of clients.entries()) {
        const { rows } = await client.query("SELECT current_setting('application_name') AS name");
        assert.equal(rows[0].name, `node ${number}`);
      }
    }
  } finally {
    await Promise.all(clients.map((client) => client.end()));
  }
});

test("migrations are no affair of busy clients with named statements", deadline, () =>
  withClients(poolSize * 3 + 1, async ([migrator, ...clients]) => {
    await migrator.query("CREATE TABLE migrated AS SELECT n AS id, 'text ' || n AS text FROM generate_series(0, 99) n");
    const changes = ["ADD COLUMN extra int DEFAULT 7", "ALTER COLUMN extra TYPE text", "DROP COLUMN extra"];
    const seen = new Set();
    let over = false;
    const ask = async (client, number) => {
      for (let count = 0; ; count++) {
        if (over) return count;
        const query = { name: "one", text: "SELECT * FROM migrated WHERE id = $1", values: [number] };
        const { rows } = await client.query(query);
        assert.equal(rows[0].text, `text ${number}`);
        seen.add(rows[0].extra);
      }
    };
    const asking = Promise.all(clients.map(ask));
    for (let turn = 0; turn < 5; turn++) {
      for (const change of changes) {
        await migrator.query(`ALTER TABLE migrated ${change}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    over = true;
    assert.ok(Math.min(...(await asking)) > 5);
    assert.deepEqual(seen, new Set([undefined, 7, "7"]));
    await migrator.query("DROP TABLE migrated");
  }),
);
