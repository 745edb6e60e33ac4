//! Relays `COUNT` transactions of a kind without sockets: `instructions simple|extended|prepared|rows COUNT`. Run by
//! `scripts/instructions.py` under callgrind, which counts the instructions.

use ringbouncer::relay::Rehearsal;
use std::hint::black_box;

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    let [_, case, count] = &arguments[..] else {
        return println!("usage: instructions simple|extended|prepared|rows COUNT");
    };
    let count: usize = count.parse().expect("COUNT is a number");
    let mut rehearsal = Rehearsal::new();
    let (request, answer) = match case.as_str() {
        "simple" => (query(), answer_to_query(1)),
        "rows" => (query(), answer_to_query(100)),
        "extended" => (extended(b""), answer_to_extended(true)),
        "prepared" => {
            let parse = [message(b'P', b"named\0SELECT 1\0\0\0"), message(b'S', b"")].concat();
            let parsed = [message(b'1', b""), message(b'Z', b"I")].concat();
            rehearsal.transaction(&parse, &parsed);
            (extended(b"named"), answer_to_extended(false))
        }
        other => panic!("unknown case {other}"),
    };
    for _ in 0..count {
        black_box(rehearsal.transaction(black_box(&request), black_box(&answer)));
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn query() -> Vec<u8> {
    message(
        b'Q',
        b"SELECT abalance FROM pgbench_accounts WHERE aid = 12345;\0",
    )
}

fn extended(statement: &[u8]) -> Vec<u8> {
    let parse = if statement.is_empty() {
        message(
            b'P',
            b"\0SELECT abalance FROM pgbench_accounts WHERE aid = $1;\0\0\0",
        )
    } else {
        Vec::new()
    };
    let bind = message(
        b'B',
        &[b"\0", statement, b"\0\0\0\0\x01\0\0\0\x0512345\0\0"].concat(),
    );
    let execute = message(b'E', b"\0\0\0\0\0");
    [
        parse,
        bind,
        message(b'D', b"P\0"),
        execute,
        message(b'S', b""),
    ]
    .concat()
}

fn description() -> Vec<u8> {
    message(
        b'T',
        b"\0\x01abalance\0\0\0\x40\x01\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
    )
}

fn result(rows: usize) -> Vec<u8> {
    let row = message(b'D', b"\0\x01\0\0\0\x010");
    [row.repeat(rows), message(b'C', b"SELECT 1\0")].concat()
}

fn answer_to_query(rows: usize) -> Vec<u8> {
    [description(), result(rows), message(b'Z', b"I")].concat()
}

fn answer_to_extended(is_parsed: bool) -> Vec<u8> {
    let parsed = if is_parsed {
        message(b'1', b"")
    } else {
        Vec::new()
    };
    let bound = message(b'2', b"");
    [parsed, bound, description(), result(1), message(b'Z', b"I")].concat()
}
