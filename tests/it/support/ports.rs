//! Ports for programs that cannot choose one themselves, and addresses at which nobody listens.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use socket2::{Domain, Socket, Type};

/// Below these the kernel gives its own ports away, to whoever connects.
const FIRST: usize = 20_000;
const COUNT: usize = 32_768 - FIRST;
/// Test processes whose ids follow each other begin so far apart.
const STRIDE: usize = 251;

/// A port that is free, that the kernel gives to nobody, and that this process asks for once.
pub fn free_port() -> u16 {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let begin = std::process::id() as usize * STRIDE;
    for _ in 0..COUNT {
        let at = (begin + ASKED.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = (FIRST + at) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// An address that is taken by somebody who does not listen: connections are refused for as long as this lives.
pub struct Deaf {
    pub address: SocketAddr,
    _socket: Socket,
}

impl Deaf {
    pub fn new() -> Deaf {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&any.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().expect("TCP");
        Deaf {
            address,
            _socket: socket,
        }
    }
}
