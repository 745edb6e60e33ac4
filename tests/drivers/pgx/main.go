// Ordinary work of pgx (v4) through a pooler, in its three ways of asking: with statements that it prepares and remembers (its
// default), with descriptions that it remembers, and in the simple protocol.
//
//	pgx postgres://user@127.0.0.1:6432/database?sslmode=disable TABLE
//
// Makes tables whose names begin with TABLE, and prints how many checks have passed.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

const (
	batchQueries  = 20
	copiedRows    = 5000
	poolClients   = 40
	poolQueries   = 50
	cancelAfter   = 300 * time.Millisecond
	cancelledBy   = 10 * time.Second
	checkDeadline = 40 * time.Second
)

type check struct {
	name string
	run  func(context.Context, *pgx.Conn, string) error
}

var checks = []check{
	{"values", values},
	{"transactions", transactions},
	{"batches", batches},
	{"copy", copying},
	{"failures", failures},
	{"cancel", cancel},
	{"ddl", ddl},
}

func main() {
	url, table := os.Args[1], os.Args[2]
	passed, failed := 0, 0
	note := func(name string, err error) {
		if err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", name, err)
			return
		}
		passed++
	}
	for _, mode := range []string{"prepare", "describe", "simple"} {
		for _, check := range checks {
			name := mode + " " + check.name
			note(name, within(url, mode, func(ctx context.Context, conn *pgx.Conn) error {
				return check.run(ctx, conn, table+"_"+mode+"_"+check.name)
			}))
		}
		note(mode+" pool", pool(url, mode))
	}
	fmt.Println("passed", passed)
	if failed > 0 {
		os.Exit(1)
	}
}

func configure(config *pgx.ConnConfig, mode string) {
	config.PreferSimpleProtocol = mode == "simple"
}

func with(url, mode string) string {
	if mode == "simple" {
		return url
	}
	return url + "&statement_cache_mode=" + mode
}

func within(url, mode string, work func(context.Context, *pgx.Conn) error) error {
	ctx, stop := context.WithTimeout(context.Background(), checkDeadline)
	defer stop()
	config, err := pgx.ParseConfig(with(url, mode))
	if err != nil {
		return err
	}
	configure(config, mode)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return work(ctx, conn)
}

// wants runs statements of which all must succeed.
func wants(ctx context.Context, conn *pgx.Conn, statements ...string) error {
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

func hasCode(err error, code string) error {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != code {
		return fmt.Errorf("wanted SQLSTATE %s, got %v", code, err)
	}
	return nil
}

func values(ctx context.Context, conn *pgx.Conn, _ string) error {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for i := 0; i < 30; i++ {
		var (
			number  int64
			text    string
			float   float64
			instant time.Time
			binary  []byte
		)
		row := conn.QueryRow(ctx, "SELECT $1::int8, $2::text, $3::float8, $4::timestamptz, $5::bytea",
			int64(i), `x'\é`, 1.5, when, []byte{0, 1, 255})
		if err := row.Scan(&number, &text, &float, &instant, &binary); err != nil {
			return err
		}
		same := number == int64(i) && text == `x'\é` && float == 1.5 && instant.Equal(when)
		if !same || !bytes.Equal(binary, []byte{0, 1, 255}) {
			return fmt.Errorf("got %v %q %v %v %v", number, text, float, instant, binary)
		}
	}
	return nil
}

func transactions(ctx context.Context, conn *pgx.Conn, table string) error {
	if err := wants(ctx, conn, "CREATE TABLE "+table+" (id int PRIMARY KEY, text text)"); err != nil {
		return err
	}
	insert := "INSERT INTO " + table + " VALUES ($1, $2)"
	err := conn.BeginFunc(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insert, 1, "kept"); err != nil {
			return err
		}
		inner, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		_, err = inner.Exec(ctx, insert, 1, "twice")
		if err := hasCode(err, "23505"); err != nil {
			return err
		}
		return inner.Rollback(ctx)
	})
	if err != nil {
		return err
	}
	undo := errors.New("undo")
	err = conn.BeginFunc(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insert, 2, "undone"); err != nil {
			return err
		}
		return undo
	})
	if !errors.Is(err, undo) {
		return fmt.Errorf("was to be rolled back: %v", err)
	}
	var count int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM "+table+" WHERE id > $1", 0).Scan(&count); err != nil {
		return err
	}
	if count != 1 {
		return fmt.Errorf("%d rows", count)
	}
	return nil
}

func batches(ctx context.Context, conn *pgx.Conn, _ string) error {
	for round := 0; round < 5; round++ {
		batch := &pgx.Batch{}
		for i := 0; i < batchQueries; i++ {
			batch.Queue("SELECT $1::int4 + $2::int4", i, round)
		}
		results := conn.SendBatch(ctx, batch)
		for i := 0; i < batchQueries; i++ {
			var sum int
			if err := results.QueryRow().Scan(&sum); err != nil {
				return err
			}
			if sum != i+round {
				return fmt.Errorf("%d + %d = %d", i, round, sum)
			}
		}
		if err := results.Close(); err != nil {
			return err
		}
		failing := &pgx.Batch{}
		failing.Queue("SELECT 1 / $1::int4", 0)
		failing.Queue("SELECT $1::int4", 2)
		results = conn.SendBatch(ctx, failing)
		_, err := results.Exec()
		if err := hasCode(err, "22012"); err != nil {
			return err
		}
		_ = results.Close()
	}
	return nil
}

func copying(ctx context.Context, conn *pgx.Conn, table string) error {
	if err := wants(ctx, conn, "CREATE TABLE "+table+" (id int, text text)"); err != nil {
		return err
	}
	rows := make([][]interface{}, copiedRows)
	for i := range rows {
		rows[i] = []interface{}{i, fmt.Sprint("row ", i)}
	}
	columns := []string{"id", "text"}
	count, err := conn.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(rows))
	if err != nil || count != copiedRows {
		return fmt.Errorf("%d rows copied: %v", count, err)
	}
	nonsense := pgx.CopyFromRows([][]interface{}{{"no number", "x"}})
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{table}, columns, nonsense); err == nil {
		return errors.New("nonsense has been copied")
	}
	var out bytes.Buffer
	tag, err := conn.PgConn().CopyTo(ctx, &out, "COPY "+table+" TO STDOUT")
	if err != nil || tag.RowsAffected() != copiedRows || strings.Count(out.String(), "\n") != copiedRows {
		return fmt.Errorf("%v, %d lines: %v", tag, strings.Count(out.String(), "\n"), err)
	}
	return nil
}

func failures(ctx context.Context, conn *pgx.Conn, _ string) error {
	for i := 0; i < 20; i++ {
		for statement, code := range map[string]string{
			"SELECT 1 / $1::int4":      "22012",
			"SELEC $1::int4":           "42601",
			"SELECT nothing($1::int4)": "42883",
		} {
			_, err := conn.Exec(ctx, statement, 0)
			if err := hasCode(err, code); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		var number int
		if err := conn.QueryRow(ctx, "SELECT $1::int4", i).Scan(&number); err != nil || number != i {
			return fmt.Errorf("%d after errors: %v", number, err)
		}
	}
	return nil
}

// cancel lets a deadline pass, at which pgx sends a cancel request or hangs up; nobody else may notice.
func cancel(ctx context.Context, conn *pgx.Conn, _ string) error {
	soon, stop := context.WithTimeout(ctx, cancelAfter)
	defer stop()
	began := time.Now()
	if _, err := conn.Exec(soon, "SELECT pg_sleep($1)", 30.0); err == nil {
		return errors.New("a query outlived its deadline")
	}
	if took := time.Since(began); took > cancelledBy {
		return fmt.Errorf("it took %v", took)
	}
	return nil
}

// ddl changes a table under statements that pgx remembers, outside of transactions.
func ddl(ctx context.Context, conn *pgx.Conn, table string) error {
	if err := wants(ctx, conn, "CREATE TABLE "+table+" (id int, text text)", "INSERT INTO "+table+" VALUES (1, 'a')"); err != nil {
		return err
	}
	read := func() error {
		var id int
		var text string
		err := conn.QueryRow(ctx, "SELECT id, text FROM "+table+" WHERE id = $1", 1).Scan(&id, &text)
		if err != nil || id != 1 || text != "a" {
			return fmt.Errorf("read %d %q: %v", id, text, err)
		}
		return nil
	}
	for _, change := range []string{"ADD more int", "DROP more", "ALTER text TYPE varchar(20)"} {
		if err := read(); err != nil {
			return fmt.Errorf("before %s: %w", change, err)
		}
		if err := wants(ctx, conn, "ALTER TABLE "+table+" "+change); err != nil {
			return err
		}
	}
	return read()
}

// pool has more clients than the pooler has servers, each with queries of its own.
func pool(url, mode string) error {
	ctx, stop := context.WithTimeout(context.Background(), checkDeadline)
	defer stop()
	config, err := pgxpool.ParseConfig(with(url, mode))
	if err != nil {
		return err
	}
	configure(config.ConnConfig, mode)
	config.MaxConns = poolClients
	clients, err := pgxpool.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer clients.Close()
	outcomes := make(chan error, poolClients)
	var all sync.WaitGroup
	for client := 0; client < poolClients; client++ {
		all.Add(1)
		go func(client int) {
			defer all.Done()
			for query := 0; query < poolQueries; query++ {
				sql := fmt.Sprintf("SELECT $1::int4 * 1000 + $2::int4, %d", query%7)
				var product, kind int
				err := clients.QueryRow(ctx, sql, client, query).Scan(&product, &kind)
				if err != nil || product != client*1000+query || kind != query%7 {
					outcomes <- fmt.Errorf("client %d, query %d: %d %d: %v", client, query, product, kind, err)
					return
				}
			}
		}(client)
	}
	all.Wait()
	close(outcomes)
	return <-outcomes
}
