//! Which of the sockets that listen at one TCP address a client comes to.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// Sends who connects from now on to the listeners `favoured`, at random: all listeners of one address, of whatever process, are
/// counted in the order in which they began to listen. Where there are fewer than that, all of them take part, as ever.
///
/// # Errors
/// Those of setsockopt(2); if `favoured` is empty, too.
pub fn steer(listener: &OwnedFd, favoured: &Range<u32>) -> io::Result<()> {
    // An offset that no packet has stands for what the kernel knows besides (socket(7), SO_ATTACH_REUSEPORT_CBPF).
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let count = favoured.end.saturating_sub(favoured.start);
    let step = |code: u32, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, favoured.start),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as libc::c_ushort,
        filter: steps.as_mut_ptr(),
    };
    set(listener, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Ends what [`steer`] began: every listener of the address takes part again.
///
/// # Errors
/// Those of setsockopt(2).
pub fn unsteer(listener: &OwnedFd) -> io::Result<()> {
    set::<libc::c_int>(listener, libc::SO_DETACH_REUSEPORT_BPF, &0)
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open; the value, and the program that it may point to, live through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{TcpOptions, listen_tcp};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    const CALLS: usize = 64;

    /// How many of [`CALLS`] connections come to each listener.
    fn calls(listeners: &[TcpListener]) -> Vec<usize> {
        let address = listeners[0].local_addr().unwrap();
        let callers: Vec<_> = (0..CALLS).map(|_| TcpStream::connect(address)).collect();
        assert!(callers.iter().all(Result::is_ok));
        let count = |listener: &TcpListener| {
            listener.set_nonblocking(true).unwrap();
            listener.incoming().map_while(Result::ok).count()
        };
        listeners.iter().map(count).collect()
    }

    #[test]
    fn callers_come_where_they_are_steered_and_everywhere_afterwards() {
        let listen = |address| listen_tcp(address, 128, &TcpOptions::default()).unwrap();
        let first = TcpListener::from(listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
        let address = first.local_addr().unwrap();
        let mut listeners = vec![first];
        listeners.extend((1..4).map(|_| TcpListener::from(listen(address))));
        let steered = OwnedFd::from(listeners[3].try_clone().unwrap());
        steer(&steered, &(0..1)).unwrap();
        assert_eq!(calls(&listeners), [CALLS, 0, 0, 0]);
        steer(&steered, &(2..4)).unwrap();
        assert_eq!(calls(&listeners)[..2], [0, 0]);
        for everywhere in [|socket: &OwnedFd| steer(socket, &(4..6)), unsteer] {
            everywhere(&steered).unwrap();
            assert!(calls(&listeners).iter().all(|count| *count > 0));
        }
        assert!(steer(&steered, &(2..2)).is_err());
    }
}
