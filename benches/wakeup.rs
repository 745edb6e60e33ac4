//! How long a message between two shards is on its way: `cargo bench --bench wakeup`. Without the
//! `--bench` flag that `cargo bench` passes it only proves that it runs.
//!
//! Two threads, each pinned to a CPU of its own where there are two. The shards are made of the program's
//! own parts as `src/shard` puts them together: executor, ring, driver, mailbox, MSG_RING. Beside
//! them, in alternating rounds of the same run, the floor: two io_urings with SINGLE_ISSUER |
//! DEFER_TASKRUN, each thread blocking in its own, that send MSG_RING to each other.
//!
//! A message carries the moment at which it was posted; its latency is taken where it is handled. The
//! receiver answers, and the next message follows after `idle`, in which the receiver sleeps and
//! the sender spins. A busy receiver has a task that computes for 50 us and yields, for ever; its
//! latency is to be compared with a turn of its loop, from one system call to the next. The sender
//! answers at once, so its messages come early in a turn and wait for most of it.
//!
//! A hand-off is what becomes of an idle server that goes to another shard: from the decision to send it, the end of its
//! armed receive awaited, to the moment when the other shard has it on its ring.
//!
//! Wanted: a median of at most 1.5 times the floor to a sleeping shard; at most a turn to a busy one. The former is required:
//! exits with 1 if none of five repetitions achieves it.

use futures_lite::future::yield_now;
use glommio::{LocalExecutorBuilder, Placement};
use io_uring::{IoUring, cqueue, opcode, squeue, types::Fd};
use ringbouncer::base::ShardId;
use ringbouncer::mesh::Mesh;
use ringbouncer::net::{Detached, Driver, Net, NetOptions, Socket, spawn};
use ringbouncer::stats::ShardStats;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

const SENDER: ShardId = ShardId(0);
const RECEIVER: ShardId = ShardId(1);
const IDLE_US: [u64; 3] = [0, 200, 2000];
const RATIO_MAX: f64 = 1.5;
const BUSY: Duration = Duration::from_micros(50);

/// Nanoseconds since the start, the same clock on all threads.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

fn spin(span: Duration) {
    let until = now() + span.as_nanos() as u64;
    while now() < until {
        std::hint::spin_loop();
    }
}

/// The CPU of the `at`-th thread, unless there is but one. To be called first on a thread that is
/// not pinned: a pinned one sees one CPU, and its children would share it.
fn cpu(at: usize) -> Option<usize> {
    static CPUS: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    (*CPUS > 1).then_some(at)
}

/// The CPUs that the calling thread may run on.
fn cpus_now() -> Vec<usize> {
    let cpus = sched_getaffinity(None).expect("this thread's CPUs");
    (0..CpuSet::MAX_CPU).filter(|&at| cpus.is_set(at)).collect()
}

enum Mail {
    Ping(u64),
    /// What a ping's latency was, in nanoseconds.
    Pong(u64),
    /// A socket, decided upon at that time.
    HandOff(u64, Detached),
    /// It comes back, with what its way took.
    Return(u64, Detached),
    /// Be busy from now on, or no longer.
    Work(bool),
}

struct Shard {
    me: ShardId,
    net: Net,
    mesh: Arc<Mesh<Mail>>,
    is_busy: Cell<bool>,
    /// The latency of the last ping.
    answer: Cell<Option<u64>>,
    /// The socket that goes to and fro.
    returned: Cell<Option<Socket>>,
    waker: RefCell<Option<Waker>>,
}

impl Shard {
    fn new(me: ShardId, mesh: Arc<Mesh<Mail>>, stats: Arc<ShardStats>) -> Rc<Shard> {
        let net = Net::new(&NetOptions {
            receive_buffers: 16,
            receive_buffer_bytes: 4096,
            close_timeout: Duration::from_secs(1),
            stats,
        });
        let net = net.expect("a ring");
        net.listen_bell(mesh.open(me, net.ring_fd()));
        let shard = Rc::new(Shard {
            me,
            net,
            mesh,
            is_busy: Cell::new(false),
            answer: Cell::new(None),
            returned: Cell::new(None),
            waker: RefCell::default(),
        });
        shard.listen();
        shard
    }

    fn post(&self, to: ShardId, mail: Mail) {
        let wake = |ring| self.net.ring_other(ring);
        assert!(self.mesh.post(to, mail, wake).is_ok(), "a full mailbox");
    }

    /// Handles the mail, as a shard does: in the turn in which it is woken, before its tasks.
    fn listen(self: &Rc<Self>) {
        let shard = self.clone();
        self.net.on_mail(move || {
            shard.mesh.woken(shard.me);
            while let Some(mail) = shard.mesh.take(shard.me) {
                shard.handle(mail);
            }
        });
        self.net.expect_mail();
    }

    fn handle(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Ping(sent) => self.post(SENDER, Mail::Pong(now() - sent)),
            Mail::Pong(latency) => self.answered(latency),
            Mail::HandOff(sent, socket) => {
                let socket = Socket::attach(self.net, socket);
                let (latency, shard) = (now() - sent, self.clone());
                spawn(self.net, async move {
                    let socket = off(socket).await;
                    shard.post(SENDER, Mail::Return(latency, socket));
                });
            }
            Mail::Return(latency, socket) => {
                self.returned.set(Some(Socket::attach(self.net, socket)));
                self.answered(latency);
            }
            Mail::Work(wanted) if wanted && !self.is_busy.replace(true) => {
                let shard = self.clone();
                spawn(self.net, async move {
                    while shard.is_busy.get() {
                        spin(BUSY);
                        yield_now().await;
                    }
                });
            }
            Mail::Work(wanted) => self.is_busy.set(wanted),
        }
    }

    fn answered(&self, latency: u64) {
        self.answer.set(Some(latency));
        self.waker.borrow().iter().for_each(Waker::wake_by_ref);
    }

    async fn answer(&self) -> u64 {
        poll_fn(|cx| match self.answer.take() {
            Some(latency) => Poll::Ready(latency),
            None => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    async fn ping(&self, count: usize, idle: Duration) -> Vec<u64> {
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            spin(idle);
            self.post(RECEIVER, Mail::Ping(now()));
            latencies.push(self.answer().await);
        }
        latencies
    }

    async fn hand_off(&self, count: usize, idle: Duration) -> Vec<u64> {
        let (ours, _theirs) = UnixStream::pair().expect("two sockets");
        let mut socket = Socket::attach(self.net, Detached::new(ours.into()));
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            // Turns pass, so that its receive is armed.
            self.net.sleep(idle).await;
            let sent = now();
            let detached = off(socket).await;
            self.post(RECEIVER, Mail::HandOff(sent, detached));
            latencies.push(self.answer().await);
            socket = self.returned.take().expect("it has come back");
        }
        latencies
    }
}

async fn off(socket: Socket) -> Detached {
    let detached = socket.detach().await;
    detached.unwrap_or_else(|_| panic!("nobody says anything on it"))
}

/// Runs `body` on an executor of its own, as `src/process` starts a shard.
fn start<F: Future<Output = ()> + 'static>(
    me: ShardId,
    mesh: &Arc<Mesh<Mail>>,
    stats: &Arc<ShardStats>,
    body: impl FnOnce(Rc<Shard>) -> F + Send + 'static,
) {
    let (mesh, stats) = (mesh.clone(), stats.clone());
    let placement = cpu(me.index()).map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement).spawn(move || async move {
        let shard = Shard::new(me, mesh, stats);
        let net = shard.net;
        spawn(net, body(shard));
        Driver::new(net).run().await;
    });
    executor.expect("an executor");
}

/// A ring like a shard's, and nothing else.
struct Bare(IoUring<squeue::Entry, cqueue::Entry>);

impl Bare {
    fn new(at: usize) -> Bare {
        if let Some(cpu) = cpu(at) {
            let mut cpus = CpuSet::new();
            cpus.set(cpu);
            sched_setaffinity(None, &cpus).expect("a CPU");
            assert_eq!(
                cpus_now(),
                [cpu],
                "two rings on one CPU would flatter the floor"
            );
        }
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        Bare(builder.build(8).expect("a ring"))
    }

    /// Sends `value`, which must not be 0.
    #[allow(unsafe_code)]
    fn queue(&mut self, to: RawFd, value: u64) {
        let entry = opcode::MsgRingData::new(Fd(to), 0, value, None).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.0.submission().push(&entry) }.expect("room for one entry");
    }

    /// Submits, and waits for a value of the other ring.
    fn next(&mut self) -> u64 {
        loop {
            let values = self.0.completion().map(|entry| entry.user_data());
            if let Some(value) = values.filter(|value| *value != 0).last() {
                return value;
            }
            self.0.submit_and_wait(1).expect("io_uring_enter");
        }
    }
}

fn bare(count: usize, idle: Duration) -> Vec<u64> {
    let (rings, others) = channel();
    let (tell, told) = channel();
    let receiver = thread::spawn(move || {
        let mut ring = Bare::new(1);
        rings.send(ring.0.as_raw_fd()).expect("a sender");
        let sender: RawFd = told.recv().expect("a sender");
        let latency = |_| {
            let sent = ring.next();
            let latency = now() - sent;
            ring.queue(sender, 1);
            latency
        };
        let latencies = (0..count).map(latency).collect();
        ring.0.submit().expect("io_uring_enter");
        // The ring must live until the sender has sent its last message.
        told.recv().expect_err("the sender has gone");
        latencies
    });
    let sender = thread::spawn(move || {
        let mut ring = Bare::new(0);
        tell.send(ring.0.as_raw_fd()).expect("a receiver");
        let receiver = others.recv().expect("a receiver");
        for _ in 0..count {
            spin(idle);
            ring.queue(receiver, now().max(2));
            ring.next();
        }
    });
    sender.join().expect("the sender");
    receiver.join().expect("the receiver")
}

fn quantile(latencies: &mut [u64], percent: usize) -> f64 {
    latencies.sort_unstable();
    latencies[(latencies.len() - 1) * percent / 100] as f64 / 1000.0
}

fn show(name: &str, latencies: &mut [u64]) -> f64 {
    let (p50, p99) = (quantile(latencies, 50), quantile(latencies, 99));
    println!("{name:<28} p50 {p50:7.1} us  p99 {p99:7.1} us");
    p50
}

/// How long messages to a sleeping shard take, and those of bare rings in the same time; gives the ratio of the medians in the
/// repetition where it is best, as the machine may have something else to do in the others.
async fn compare(shard: &Shard, repetitions: usize, count: usize, idle: Duration) -> f64 {
    let (mut ours, mut floor, mut best) = (Vec::new(), Vec::new(), f64::INFINITY);
    for _ in 0..repetitions {
        let (mut ours_now, mut floor_now) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            ours_now.extend(shard.ping(count, idle).await);
            floor_now.extend(bare(count, idle));
        }
        best = best.min(quantile(&mut ours_now, 50) / quantile(&mut floor_now, 50));
        ours.extend(ours_now);
        floor.extend(floor_now);
    }
    let idle_us = idle.as_micros();
    let ours = show(&format!("shard, asleep {idle_us} us"), &mut ours);
    let floor = show(&format!("bare rings, {idle_us} us"), &mut floor);
    let ratio = ours / floor;
    println!(
        "{:<28} {ratio:.2}, at best {best:.2}",
        "ratio of the medians"
    );
    best
}

/// Whether a sleeping shard is as quick as is required.
async fn measure(shard: Rc<Shard>, receiver: Arc<ShardStats>) -> bool {
    let is_measuring = std::env::args().any(|argument| argument == "--bench");
    let (repetitions, count) = if is_measuring { (5, 300) } else { (1, 10) };
    let mut worst: f64 = 0.0;
    for idle_us in IDLE_US {
        let idle = Duration::from_micros(idle_us);
        worst = worst.max(compare(&shard, repetitions, count, idle).await);
        let mut moved = shard.hand_off(2 * repetitions * count, idle).await;
        show(&format!("hand-off, {idle_us} us"), &mut moved);
    }
    let reading = || (receiver.busy_us.load(), receiver.ring_enters.load());
    shard.post(RECEIVER, Mail::Work(true));
    shard.ping(1, Duration::ZERO).await;
    let before = reading();
    let mut busy = shard
        .ping(2 * repetitions * count, Duration::from_micros(20))
        .await;
    let after = reading();
    show("shard, busy", &mut busy);
    let turn = (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
    println!("{:<28} {turn:11.1} us", "a turn of its loop, mean");
    !is_measuring || worst <= RATIO_MAX
}

fn main() -> ExitCode {
    let mesh = Arc::new(Mesh::new(2).expect("mailboxes"));
    let stats = [(); 2].map(|()| Arc::new(ShardStats::default()));
    let (done, finished) = channel();
    start(RECEIVER, &mesh, &stats[1], |_shard| async {});
    let receiver = stats[1].clone();
    start(SENDER, &mesh, &stats[0], move |shard| async move {
        let is_quick = measure(shard, receiver).await;
        done.send(is_quick).expect("the main thread");
    });
    // The shards run for ever.
    let is_quick = finished.recv().expect("the sender died");
    if !is_quick {
        println!("more than {RATIO_MAX} times what bare rings take");
    }
    if is_quick {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
