//! The one CPU of this machine that an emulated host takes.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps this process, and what it starts, on one CPU of this machine: on one without an emulated host,
/// if there is such a CPU. Returns the lock that keeps other emulated hosts off it.
///
/// Were QEMU's threads to run at the same time, an interrupt would now and then meet a virtual machine
/// inside as it is entered or left, and the machine would go on with its host's registers (seen with QEMU
/// 7.2: each guest was lost within some hundred interrupts).
pub fn pin_to_one(locks: &Path) -> anyhow::Result<Option<File>> {
    let cpus = allowed_cpus()?;
    for &cpu in &cpus {
        if let Some(lock) = lock(locks, cpu)? {
            pin(cpu)?;
            return Ok(Some(lock));
        }
    }
    cpus.last().copied().map_or(Ok(()), pin)?;
    Ok(None)
}

fn allowed_cpus() -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("cannot find out which CPUs there are")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("cannot run on CPU {cpu} only"))
}

/// None if another emulated host has it.
fn lock(locks: &Path, cpu: usize) -> anyhow::Result<Option<File>> {
    let path = locks.join(format!("cpu {cpu}"));
    let open = || {
        fs::create_dir_all(locks)?;
        File::create(&path)
    };
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
    Ok(file.try_lock().is_ok().then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_locked_once() {
        let locks = tempfile::TempDir::new().unwrap();
        let first = lock(locks.path(), 0).unwrap();
        assert!(first.is_some() && lock(locks.path(), 0).unwrap().is_none());
        assert!(lock(locks.path(), 1).unwrap().is_some());
        drop(first);
        assert!(lock(locks.path(), 0).unwrap().is_some());
    }
}
