//! From the start of a VMM's process until the guest's /init says hello on its second serial port.
//!
//! What a VMM can do about it: load itself, make a machine, load or hand over the kernel, run as
//! little firmware as it can, and cost the guest few and short exits. The kernel's own part is the
//! same for all, with its log on an emulated 16550A. A bzImage unpacks itself, for all as well. What
//! PCI costs is the guest's search of it, so moat starts with and without.

use std::time::Instant;

use agent_protocol::{FrameReader, Hello};

use crate::{
    contender::{Contender, Programs},
    report::{Figure, Unit},
    vm::Vm,
};

pub const FIGURE: Figure = Figure { name: "process start to /init", unit: Unit::Seconds };

/// A VM that has just started, and how many seconds that took.
pub fn measure(programs: &Programs, contender: Contender) -> anyhow::Result<(Vm, f64)> {
    let start = Instant::now();
    let (vm, agent) = Vm::start(programs, contender, false)?;
    let mut frames = FrameReader::new(agent);
    frames
        .skip_to_magic()
        .and_then(|()| frames.read::<Hello>())
        .map_err(|error| vm.trouble(error))?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((vm, seconds))
}
