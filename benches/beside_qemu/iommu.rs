//! What a virtio-iommu costs: its requests, and DMA through it.
//!
//! VFIO maps memory for a device page by page, a MAP request each, and Linux waits for every answer. It
//! unmaps in larger pieces where pages lie side by side, an UNMAP request each. What a VMM can do about
//! it: few steps from the notification to the answer, and no scan of what is mapped already.
//!
//! The entropy device gives Linux 64 bytes at a time, and for each time Linux maps its buffer, and unmaps
//! it later. What a VMM can do about that is to translate fast. Linux's own part is in all figures.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testvm::{
    guest::{
        Guest as Agent, GuestError, Mapping, Observe, OpenFlags, PciFunction, Process, VfioDevice,
    },
    vm::{Accelerator, Iommu, Vmm},
};

use crate::{
    contender::{Contender, Guest, Programs, Setup},
    report::{Figure, Report, Unit},
    subject::microseconds,
    vm::Vm,
};

const MAP: Figure = Figure::new("a page mapped by VFIO", Unit::Microseconds);
const UNMAP: Figure = Figure::new("a page unmapped by VFIO", Unit::Microseconds);
const READ_4K: Figure = Figure::new("4 KiB of entropy, no IOMMU", Unit::Microseconds);
const READ_64K: Figure = Figure::new("64 KiB of entropy, no IOMMU", Unit::Microseconds);
const READ_4K_BEHIND: Figure =
    Figure::new("4 KiB of entropy, behind the IOMMU", Unit::Microseconds).beside(&READ_4K);
const READ_64K_BEHIND: Figure =
    Figure::new("64 KiB of entropy, behind the IOMMU", Unit::Microseconds).beside(&READ_64K);

const PAGE: u64 = 4096;
/// So many that the way to the agent and back does not count.
const PAGES: u64 = 1024;
const IOVA: u64 = 0xa000_0000;

const BOOT: Duration = Duration::from_secs(120);

/// Asks them all in turn.
pub fn section(programs: &Programs, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut plain = Vec::new();
    for contender in Contender::ON_PCI {
        plain.push((contender, Subject::boot(programs, contender)?));
    }
    let mut behind = Vec::new();
    for contender in Contender::BEHIND_IOMMU {
        let subject = Subject::boot(programs, contender)?;
        let assigned = Assigned::open(&subject, contender)?;
        behind.push((contender, subject, assigned));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: IOMMU");
        let mut samples = Vec::new();
        for (contender, subject) in &plain {
            samples.push((READ_4K, *contender, subject.read(4 << 10)?));
            samples.push((READ_64K, *contender, subject.read(64 << 10)?));
        }
        for (contender, subject, assigned) in &behind {
            samples.push((READ_4K_BEHIND, *contender, subject.read(4 << 10)?));
            samples.push((READ_64K_BEHIND, *contender, subject.read(64 << 10)?));
            let (map, unmap) = assigned.map_and_unmap(subject)?;
            samples.push((MAP, *contender, map));
            samples.push((UNMAP, *contender, unmap));
        }
        if round > 0 {
            for (figure, contender, sample) in samples {
                report.add(figure, contender, sample);
            }
        }
    }
    Ok(())
}

/// A guest that drives an entropy device.
struct Subject {
    guest: Agent,
    process: Process,
    buffer: Mapping,
    _vm: Vm,
}

impl Subject {
    fn boot(programs: &Programs, contender: Contender) -> anyhow::Result<Self> {
        let setup = Setup { guest: Guest::Linux, vcpus: 1, memory_device: None };
        let (vm, agent) = Vm::start(programs, contender, &setup)?;
        let guest = Agent::connect(agent, BOOT).map_err(|error| vm.trouble(error))?;
        guest.load_module("virtio_pci", "")?;
        guest.load_module("virtio_rng", "")?;
        let process = guest.spawn()?;
        let buffer = process.allocate(PAGES * PAGE)?;
        // So that it is there.
        buffer.fill(1)?;
        Ok(Self { guest, process, buffer, _vm: vm })
    }

    /// Microseconds that a read(2) of so many bytes takes, and nothing else.
    fn read(&self, bytes: u32) -> anyhow::Result<f64> {
        let device = self.process.open("/dev/hwrng", OpenFlags::RDONLY)?;
        let (read, took) = self.clock(|| self.buffer.read_from(&device, 0, 0, bytes))?;
        device.close()?;
        ensure!(read == u64::from(bytes), "{read} bytes of entropy came, not {bytes}");
        Ok(took)
    }

    /// What an answer is, and how many microseconds it took longer than one to nothing.
    fn clock<T, E>(&self, ask: impl FnOnce() -> Result<T, E>) -> anyhow::Result<(T, f64)>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let start = Instant::now();
        self.process.create_event_fd()?;
        let nothing = start.elapsed();
        let start = Instant::now();
        let answer = ask()?;
        let took = start.elapsed().saturating_sub(nothing);
        Ok((answer, microseconds(took)))
    }
}

/// A function that the process has.
struct Assigned(VfioDevice);

impl Assigned {
    fn open(subject: &Subject, contender: Contender) -> anyhow::Result<Self> {
        let Subject { guest, process, .. } = subject;
        guest.load_module("vfio_iommu_type1", "allow_unsafe_interrupts=1 disable_hugepages=1")?;
        guest.load_module("vfio_pci", "").outcome()?;
        let function = idle_function(guest, contender)?.context("there is no idle function")?;
        function.bind("vfio-pci")?;
        Ok(Self(VfioDevice::open(process, &function)?))
    }

    /// Microseconds that a page takes to be mapped, and to be unmapped.
    fn map_and_unmap(&self, subject: &Subject) -> anyhow::Result<(f64, f64)> {
        let (container, length) = (self.0.container(), PAGES * PAGE);
        let ((), map) = subject.clock(|| container.map_dma(IOVA, &subject.buffer, length))?;
        let ((), unmap) = subject.clock(|| container.unmap_dma(IOVA, length))?;
        Ok((map / PAGES as f64, unmap / PAGES as f64))
    }
}

/// The function that no driver is made for.
fn idle_function(guest: &Agent, contender: Contender) -> Result<Option<PciFunction>, GuestError> {
    let vmm = match contender.is_qemu() {
        true => Vmm::Qemu(Accelerator::Kvm, Iommu::Virtio),
        false => Vmm::Moat,
    };
    let idle = vmm.endpoints().idle;
    guest.pci_function(idle.vendor, idle.device)
}
