//! From the start of a VMM's process until the guest's /init says hello on its second serial port.
//!
//! A VMM's part is: to load itself, to make a machine, to load or hand over the kernel, to run as little
//! firmware as it can, and to cause few and short exits. The kernel's own part is the same for all,
//! with its log on an emulated 16550A and a bzImage that unpacks itself. PCI costs the time in which the
//! guest enumerates it, so moat starts with and without.

use std::time::Duration;

use agent_protocol::{FrameReader, Hello};
use anyhow::Context;
use testvm::vm;

use crate::{
    footprint::{self, Footprint},
    monitor::{Guests, Monitor},
    report::{Figure, Report, Unit},
};

/// Emulated hosts need 10 seconds; more is a hang.
const BOOT: Duration = Duration::from_secs(120);

const FIGURE: Figure = Figure::new("process start to /init", Unit::Seconds);

const MONITORS: [Monitor; 5] = [
    Monitor::MOAT,
    Monitor::MOAT_PCI,
    Monitor::MOAT_SMALL_PAGES,
    Monitor::QEMU_MICROVM,
    Monitor::QEMU_Q35,
];

/// Starts all of them in turn, and measures their footprint.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: start and footprint");
        for monitor in MONITORS {
            let (started, footprint) = measure(guests, monitor)?;
            // The first round warms the host's caches.
            if round > 0 {
                report.add(FIGURE, monitor, started);
                report.add(footprint::TOTAL, monitor, footprint.total);
                report.add(footprint::NOT_GUEST_MEMORY, monitor, footprint.not_guest_memory);
            }
        }
    }
    Ok(())
}

/// How many seconds a VM took to start, and its footprint.
fn measure(guests: &Guests, monitor: Monitor) -> anyhow::Result<(f64, Footprint)> {
    let (machine, agent) = vm::start(&monitor.linux(guests))?;
    agent.set_read_timeout(Some(BOOT))?;
    let process = machine.process().context("the monitor is not a process of its own")?;
    let mut frames = FrameReader::new(agent);
    frames
        .skip_to_magic()
        .and_then(|()| frames.read::<Hello>())
        .with_context(|| format!("{}: {}", monitor.name, machine.console().as_str()))?;
    let seconds = process.started().elapsed().as_secs_f64();
    Ok((seconds, footprint::measure(process.id())?))
}
