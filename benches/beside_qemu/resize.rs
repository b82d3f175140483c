//! From the request for another size of a virtio-mem device until the guest has it: 2 GiB more, and
//! 2 GiB less.
//!
//! The guest's driver works block by block, and what a VMM can do about it is to answer its requests
//! fast, and not to get in the way of its vCPU. A VMM says how much is plugged, which is asked without
//! a pause and without disturbing the guest. The guest plugs a piece before it makes use of it, so
//! growing ends with a short question to the agent: is the last piece in use? It unplugs a piece after
//! it has given it up, so shrinking needs none.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use testvm::guest::Guest as Agent;

use crate::{
    contender::{Backing, Contender, Guest, MemoryDevice, Programs, Setup},
    control::Control,
    report::{Figure, Report, Unit},
    vm::Vm,
};

const GROW: Figure = Figure::new("grow by 2 GiB", Unit::Seconds);
const SHRINK: Figure = Figure::new("shrink by 2 GiB", Unit::Seconds);

const CONTENDERS: [Contender; 3] =
    [Contender::MOAT, Contender::MOAT_UNENFORCED, Contender::QEMU_Q35];

const REGION: u64 = 3 << 30;
const CHANGE: u64 = 2 << 30;
/// The guest's addresses below its RAM's end and the region's start, in blocks of Linux.
const REGION_BLOCK: u64 = 32;
/// Linux adds memory in blocks of this size to a machine this small.
const LINUX_BLOCK: u64 = 128 << 20;

const BOOT: Duration = Duration::from_secs(120);
/// Far more than any VMM needs, in any host.
const PATIENCE: Duration = Duration::from_secs(60);

/// Resizes them all in turn.
pub fn section(programs: &Programs, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut subjects = Vec::new();
    for contender in CONTENDERS {
        eprintln!("booting {} to resize it", contender.name);
        subjects.push((contender, Subject::boot(programs, contender)?));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: grow and shrink");
        for (contender, subject) in &mut subjects {
            let (grown, shrunk) = (subject.grow()?, subject.shrink()?);
            if round > 0 {
                report.add(GROW, *contender, grown);
                report.add(SHRINK, *contender, shrunk);
            }
        }
    }
    for figure in [GROW, SHRINK] {
        report.not_supported(figure, Contender::QEMU_MICROVM, "it has no place for virtio-mem");
    }
    Ok(())
}

/// A VM with a virtio-mem device whose driver is loaded and has plugged nothing yet.
struct Subject {
    control: Control,
    guest: Agent,
    vm: Vm,
}

impl Subject {
    /// Boots it.
    fn boot(programs: &Programs, contender: Contender) -> anyhow::Result<Self> {
        let backing = Backing::Anonymous;
        let memory_device = Some(MemoryDevice { size: REGION, requested: 0, backing });
        let setup = Setup { guest: Guest::Linux, vcpus: 1, memory_device };
        let (mut vm, agent) = Vm::start(programs, contender, &setup)?;
        let guest = Agent::connect(agent, BOOT).map_err(|error| vm.trouble(error))?;
        let bus = if contender.is_qemu() { "virtio_pci" } else { "virtio_mmio" };
        guest.load_module(bus, "")?;
        guest.load_module("virtio_mem", "")?;
        Ok(Self { control: vm.control()?, guest, vm })
    }

    /// Seconds to 2 GiB plugged and in use.
    fn grow(&mut self) -> anyhow::Result<f64> {
        let before = self.guest.meminfo()?.total();
        let start = Instant::now();
        self.change(CHANGE, start)?;
        let last = REGION_BLOCK + CHANGE / LINUX_BLOCK - 1;
        let online = format!("/sys/devices/system/memory/memory{last}/online");
        while !matches!(self.guest.read_text(&online).as_deref(), Ok("1\n")) {
            self.check_patience(start)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let grown = self.guest.meminfo()?.total() - before;
        ensure!(grown == CHANGE, "the guest says it has {grown} bytes more, not {CHANGE}");
        Ok(seconds)
    }

    /// Seconds to nothing plugged.
    fn shrink(&mut self) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.change(0, start)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn change(&mut self, bytes: u64, start: Instant) -> anyhow::Result<()> {
        self.control.request(bytes)?;
        while self.control.plugged()? != bytes {
            self.check_patience(start)?;
        }
        Ok(())
    }

    fn check_patience(&self, start: Instant) -> anyhow::Result<()> {
        if start.elapsed() > PATIENCE {
            bail!(self.vm.trouble(anyhow::anyhow!("no other size within {PATIENCE:?}")));
        }
        Ok(())
    }
}
