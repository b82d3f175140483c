//! From the start of a VMM's process until the guest's /init says hello on its second serial port.
//!
//! What a VMM can do about it: load itself, make a machine, load or hand over the kernel, run as
//! little firmware as it can, and cost the guest few and short exits. The kernel's own part is the
//! same for all, with its log on an emulated 16550A. A bzImage unpacks itself, for all as well. What
//! PCI costs is the guest's search of it, so moat starts with and without.

use std::time::Instant;

use agent_protocol::{FrameReader, Hello};

use crate::{
    contender::{Contender, Guest, Programs, Setup},
    footprint,
    report::{Figure, Report, Unit},
    vm::Vm,
};

const FIGURE: Figure = Figure::new("process start to /init", Unit::Seconds);

const CONTENDERS: [Contender; 4] =
    [Contender::MOAT, Contender::MOAT_PCI, Contender::QEMU_MICROVM, Contender::QEMU_Q35];

/// Starts them all in turn, and has a look at their footprint.
pub fn section(programs: &Programs, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: start and footprint");
        for contender in CONTENDERS {
            let (vm, started) = measure(programs, contender)?;
            let footprint = footprint::measure(&vm)?;
            // The first time warms the host's caches.
            if round > 0 {
                report.add(FIGURE, contender, started);
                report.add(footprint::TOTAL, contender, footprint.total);
                report.add(footprint::NOT_GUEST_MEMORY, contender, footprint.not_guest_memory);
            }
        }
    }
    Ok(())
}

/// A VM that has just started, and how many seconds that took.
fn measure(programs: &Programs, contender: Contender) -> anyhow::Result<(Vm, f64)> {
    let start = Instant::now();
    let setup = Setup { guest: Guest::Linux, vcpus: 1, memory_device: None };
    let (vm, agent) = Vm::start(programs, contender, &setup)?;
    let mut frames = FrameReader::new(agent);
    frames
        .skip_to_magic()
        .and_then(|()| frames.read::<Hello>())
        .map_err(|error| vm.trouble(error))?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((vm, seconds))
}
