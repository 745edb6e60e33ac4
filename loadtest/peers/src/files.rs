//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to `wanted` if this process may, else as far as it may; returns what it is then.
pub fn allow(wanted: u64) -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum;
    if hard.is_some_and(|hard| hard < wanted) {
        // Only a privileged process gets this, and not every one.
        let raised = Rlimit {
            current: Some(wanted),
            maximum: Some(wanted),
        };
        let _ = setrlimit(Resource::Nofile, raised);
    }
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
