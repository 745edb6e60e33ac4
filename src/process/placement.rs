//! Which core each shard runs on: one shard per physical core, siblings left to interrupts; two
//! poolers on sibling hyper-threads had twice the latency of two on separate cores (Zalando, 2020).
//!
//! Fewer shards than that go where the kernel puts them, unless `cpus` says where: it puts them near whom they talk with. One
//! shard tied to one of two cores took 1.7 times the CPU time per transaction at one client that it took untied, and 1.07
//! to 1.11 times at 8 to 128 (docs/BENCHMARKS.md).

use super::error::StartError;
use rustix::thread::{CpuSet, sched_getaffinity};
use std::collections::BTreeSet;

/// Cores for `shards` shards (0: as many as there are physical cores), `None` for a shard that
/// runs wherever the kernel puts it, as all do if there are more shards than cores, or fewer and `cpus` names none.
///
/// # Errors
/// [`StartError::NoSuchCpu`] if `cpus` names a core that the process may not use.
pub(super) fn place(shards: usize, cpus: &[usize]) -> Result<Vec<Option<usize>>, StartError> {
    let allowed = allowed();
    if let Some(missing) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(StartError::NoSuchCpu(*missing));
    }
    let mut cores = if cpus.is_empty() {
        physical(&allowed)
    } else {
        cpus.to_vec()
    };
    if cpus.is_empty() && (1..cores.len()).contains(&shards) {
        return Ok(vec![None; shards]);
    }
    if cores.len() < shards && cpus.is_empty() && allowed.len() >= shards {
        cores = allowed.into_iter().collect();
    }
    let shards = if shards == 0 {
        cores.len().max(1)
    } else {
        shards
    };
    if cores.len() < shards {
        return Ok(vec![None; shards]);
    }
    Ok(cores.into_iter().take(shards).map(Some).collect())
}

fn allowed() -> BTreeSet<usize> {
    let set = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// The first hyper-thread of every physical core.
fn physical(allowed: &BTreeSet<usize>) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let is_first = |cpu: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string());
        seen.insert(siblings)
    };
    allowed.iter().copied().filter(is_first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_shards_than_cores_run_unpinned() {
        assert_eq!(place(33_000, &[]).unwrap(), vec![None; 33_000]);
    }

    #[test]
    fn no_number_means_one_shard_per_physical_core() {
        let placed = place(0, &[]).unwrap();
        assert!(!placed.is_empty() && placed.iter().all(Option::is_some));
    }

    #[test]
    fn fewer_shards_than_cores_are_tied_only_to_cores_that_are_named() {
        let cores = physical(&allowed());
        let few = cores.len().saturating_sub(1);
        assert_eq!(place(few, &[]).unwrap().len(), few.max(1));
        assert!(few == 0 || place(few, &[]).unwrap() == vec![None; few]);
        assert_eq!(place(1, &cores[..1]).unwrap(), [Some(cores[0])]);
    }

    #[test]
    fn cores_that_are_not_there_are_refused() {
        assert!(matches!(
            place(1, &[1_000_000]),
            Err(StartError::NoSuchCpu(1_000_000))
        ));
    }
}
