//! Threads for work that blocks or takes long. They are started when needed, up to a bound, and end
//! with the process.

use crossbeam::channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Threads for what blocks: how many logins can be judged at the same time.
const JUDGING_THREADS: usize = 32;
/// Threads that ask this machine about its users, which a name service may answer late.
const NAMING_THREADS: usize = 4;
/// Threads for what computes, and how nice they are: with every core busy they get about a tenth of
/// what a shard gets (sched(7)), so that a storm of logins does not slow queries down.
const COMPUTING_THREADS: usize = 4;
const COMPUTING_NICENESS: i32 = 10;
/// Jobs that wait for a thread; more are refused.
const JOBS_MAX: usize = 4096;

type Job = Box<dyn FnOnce() + Send>;

/// The threads and their queue.
pub struct Workers {
    name: &'static str,
    jobs: Sender<Job>,
    queue: Receiver<Job>,
    threads: AtomicUsize,
    threads_max: usize,
    niceness: i32,
    /// Jobs that wait or run.
    pending: Arc<AtomicUsize>,
}

impl Workers {
    /// For questions to others, which block.
    pub fn judging() -> Workers {
        Workers::new("judge", JUDGING_THREADS, 0)
    }

    /// For questions to this machine's user database: apart from the others, so that a silent LDAP server does not keep an
    /// operator off the Unix socket.
    pub fn naming() -> Workers {
        Workers::new("names", NAMING_THREADS, 0)
    }

    /// For computing, at a lower priority than the shards have.
    pub fn computing() -> Workers {
        Workers::new("stretch", COMPUTING_THREADS, COMPUTING_NICENESS)
    }

    /// For what clients of the console need computed: apart from the others, so that an operator need not wait until a storm of
    /// logins is over.
    pub fn computing_for_console() -> Workers {
        Workers::new("console", 1, COMPUTING_NICENESS)
    }

    fn new(name: &'static str, threads_max: usize, niceness: i32) -> Workers {
        let (jobs, queue) = bounded(JOBS_MAX);
        Workers {
            name,
            jobs,
            queue,
            threads: AtomicUsize::new(0),
            threads_max,
            niceness,
            pending: Arc::default(),
        }
    }

    /// Has `job` run by a thread; never waits. False, with the job dropped and the log told, if too many wait already.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let pending = self.pending.fetch_add(1, Ordering::SeqCst) + 1;
        if pending > self.threads.load(Ordering::SeqCst) {
            self.start_one();
        }
        // A job that no thread will ever take must not seem to be under way.
        let has_threads = self.threads.load(Ordering::SeqCst) > 0;
        let is_taken = has_threads && self.jobs.try_send(Box::new(job)).is_ok();
        if !is_taken {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            tracing::error!(threads = self.name, "too many logins wait for a thread");
        }
        is_taken
    }

    fn start_one(&self) {
        let number = self.threads.fetch_add(1, Ordering::SeqCst);
        let (queue, pending) = (self.queue.clone(), self.pending.clone());
        let niceness = self.niceness;
        let started = (number < self.threads_max).then(|| {
            thread::Builder::new()
                .name(format!("{}-{number}", self.name))
                .spawn(move || serve(&queue, &pending, niceness))
        });
        if !matches!(started, Some(Ok(_))) {
            self.threads.fetch_sub(1, Ordering::SeqCst);
        }
        if let Some(Err(error)) = started {
            tracing::warn!(%error, "cannot start a worker thread");
        }
    }
}

fn serve(queue: &Receiver<Job>, pending: &AtomicUsize, niceness: i32) {
    if niceness > 0 {
        // On Linux a priority belongs to a thread (setpriority(2), NOTES). Without it all work alike.
        let _ = rustix::process::setpriority_process(None, niceness);
    }
    for job in queue {
        job();
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn jobs_that_block_do_not_keep_others_from_running() {
        let workers = Workers::judging();
        let (done, finished) = channel();
        let (release, released) = bounded::<()>(0);
        for _ in 0..JUDGING_THREADS - 1 {
            let released = released.clone();
            assert!(workers.run(move || {
                let _ = released.recv();
            }));
        }
        assert!(workers.run(move || done.send(1).unwrap()));
        assert_eq!(finished.recv_timeout(PATIENCE), Ok(1));
        drop(release);
    }

    #[test]
    fn queue_is_bounded_and_every_job_in_it_runs() {
        let workers = Workers::judging();
        let (done, finished) = channel();
        let (release, released) = bounded::<()>(0);
        let mut taken = 0;
        for _ in 0..JOBS_MAX + JUDGING_THREADS + 1 {
            let (done, released) = (done.clone(), released.clone());
            taken += usize::from(workers.run(move || {
                let _ = released.recv();
                done.send(()).unwrap();
            }));
        }
        assert!(
            (JOBS_MAX..=JOBS_MAX + JUDGING_THREADS).contains(&taken),
            "{taken}"
        );
        drop((release, done));
        assert_eq!(finished.iter().count(), taken);
    }

    #[test]
    fn computing_threads_step_back_for_others() {
        let workers = Workers::computing();
        let (done, finished) = channel();
        let own = rustix::process::getpriority_process(None).unwrap();
        assert!(workers.run(move || {
            done.send(rustix::process::getpriority_process(None).unwrap())
                .unwrap();
        }));
        let niceness = finished.recv_timeout(PATIENCE).unwrap();
        assert_eq!(niceness, COMPUTING_NICENESS.max(own));
        assert_eq!(rustix::process::getpriority_process(None), Ok(own));
    }
}
