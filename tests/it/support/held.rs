//! A shard that does not turn: its thread is held as a debugger holds one.

use std::fs;
use std::ptr;

use super::pooler::Pooler;

/// Stopped until dropped, or until the thread that stopped it ends.
pub struct HeldShard {
    tid: i32,
}

impl HeldShard {
    /// Stops the thread of this shard; returns when it stands still.
    pub fn stop(pooler: &Pooler, shard: usize) -> HeldShard {
        let tid = thread_of(pooler.pid(), shard);
        trace(libc::PTRACE_SEIZE, tid);
        let held = HeldShard { tid };
        trace(libc::PTRACE_INTERRUPT, tid);
        // SAFETY: nothing is written, as no status is asked for.
        #[allow(unsafe_code)]
        let waited = unsafe { libc::waitpid(tid, ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, tid, "the thread does not stop");
        held
    }
}

impl Drop for HeldShard {
    fn drop(&mut self) {
        trace(libc::PTRACE_DETACH, self.tid);
    }
}

/// The first of the threads that are named after the shard; the others help it.
fn thread_of(pid: u32, shard: usize) -> i32 {
    let is_its = |tid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
        let number = format!("shard-{shard}");
        name.is_ok_and(|name| name.trim() == number || name.starts_with(&format!("{number}-")))
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tids = threads.map(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .parse()
            .unwrap()
    });
    tids.filter(is_its).min().expect("a thread of that shard")
}

fn trace(request: libc::c_uint, tid: i32) {
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: none of these requests touches memory of this process.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ptrace(request, tid, none, none) };
    assert_eq!(result, 0, "ptrace: {}", std::io::Error::last_os_error());
}
