//! A second way to one PostgreSQL.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::peer::Client;
use super::postgres::Database;

/// The same PostgreSQL at an address of its own, too, beside 127.0.0.1.
pub struct Second {
    pub address: String,
    /// Ports of those whom it has passed on.
    ports: Arc<Mutex<BTreeSet<String>>>,
}

impl Second {
    pub fn start(database: &Database) -> Second {
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let ip = Ipv4Addr::new(127, 0, 1, COUNT.fetch_add(1, Ordering::Relaxed));
        let first = database.postgres.address();
        let listener = TcpListener::bind((ip, first.port())).unwrap();
        let second = Second {
            address: ip.to_string(),
            ports: Arc::default(),
        };
        let ports = second.ports.clone();
        // To the end of all tests.
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(first).unwrap();
                let port = far.local_addr().unwrap().port();
                ports.lock().unwrap().insert(port.to_string());
                pass_on(near.try_clone().unwrap(), far.try_clone().unwrap());
                pass_on(far, near);
            }
        });
        second
    }

    /// Whether it is the one that serves this client now.
    #[track_caller]
    pub fn serves(&self, client: &mut Client) -> bool {
        let port = client.value("select inet_client_port()");
        self.ports.lock().unwrap().contains(&port)
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
