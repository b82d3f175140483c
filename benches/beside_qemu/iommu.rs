//! What a virtio-iommu costs: its requests, and DMA through it.
//!
//! VFIO maps memory for a device page by page, a MAP request each, and Linux waits for every answer. It
//! unmaps in larger pieces where pages lie side by side, an UNMAP request each. A VMM is fast here
//! with few steps from the notification to the answer, and no scan of what is mapped already.
//!
//! The entropy device gives Linux 64 bytes at a time, and each time Linux maps its buffer, and unmaps
//! it later. A VMM is fast here with fast translation. All figures include Linux's own time.

use std::time::Instant;

use anyhow::{Context, ensure};
use testvm::{
    guest::{Mapping, Observe, OpenFlags, Process, VfioDevice},
    vm::{BUS, IommuConfig, Vm, VmConfig},
};
use vmm::{ProbeConfig, VirtioTransport};

use crate::{
    bare_metal_vm::microseconds,
    monitor::{self, Guests, Monitor},
    report::{Figure, Report, Unit},
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
/// So many that the time for a message to the agent and back is negligible.
const PAGES: u64 = 1024;
const IOVA: u64 = 0xa000_0000;

/// moat and QEMU with everything on PCI.
const MONITORS: [Monitor; 2] =
    [Monitor { virtio_transport: VirtioTransport::Pci, ..Monitor::MOAT }, Monitor::QEMU_Q35];

/// Measures all of them in turn.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut plain = Vec::new();
    for monitor in MONITORS {
        plain.push((monitor, EntropyVm::boot(guests, monitor, None)?));
    }
    let mut behind = Vec::new();
    for monitor in MONITORS {
        let iommu = IommuConfig::Virtio { bypass: true };
        let vm = EntropyVm::boot(guests, monitor, Some(iommu))?;
        let assigned = Assigned::open(&vm)?;
        behind.push((monitor, vm, assigned));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: IOMMU");
        let mut samples = Vec::new();
        for (monitor, vm) in &plain {
            samples.push((READ_4K, *monitor, vm.read(4 << 10)?));
            samples.push((READ_64K, *monitor, vm.read(64 << 10)?));
        }
        for (monitor, vm, assigned) in &behind {
            samples.push((READ_4K_BEHIND, *monitor, vm.read(4 << 10)?));
            samples.push((READ_64K_BEHIND, *monitor, vm.read(64 << 10)?));
            let (map, unmap) = assigned.map_and_unmap(vm)?;
            samples.push((MAP, *monitor, map));
            samples.push((UNMAP, *monitor, unmap));
        }
        if round > 0 {
            for (figure, monitor, sample) in samples {
                report.add(figure, monitor, sample);
            }
        }
    }
    Ok(())
}

/// A VM whose guest drives an entropy device, and has an idle function.
struct EntropyVm {
    vm: Vm,
    process: Process,
    buffer: Mapping,
}

impl EntropyVm {
    fn boot(guests: &Guests, monitor: Monitor, iommu: Option<IommuConfig>) -> anyhow::Result<Self> {
        let probes = vec![ProbeConfig::default()];
        let config = VmConfig { entropy: true, probes, iommu, ..monitor.linux(guests) };
        let vm = monitor::boot(monitor, &config)?;
        vm.guest.load_module(BUS, "")?;
        vm.guest.load_module("virtio_rng", "")?;
        let process = vm.guest.spawn()?;
        let buffer = process.allocate(PAGES * PAGE)?;
        // So that its pages are allocated.
        buffer.fill(1)?;
        Ok(Self { vm, process, buffer })
    }

    /// Microseconds that a read(2) of `bytes` takes, without the message to the agent.
    fn read(&self, bytes: u32) -> anyhow::Result<f64> {
        let device = self.process.open("/dev/hwrng", OpenFlags::RDONLY)?;
        let (read, took) = self.clock(|| self.buffer.read_from(&device, 0, 0, bytes))?;
        device.close()?;
        ensure!(read == u64::from(bytes), "{read} bytes of entropy came, not {bytes}");
        Ok(took)
    }

    /// The result of `ask`, and how many microseconds it took longer than a trivial request to the agent.
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

/// A function that is assigned to the process.
struct Assigned(VfioDevice);

impl Assigned {
    fn open(vm: &EntropyVm) -> anyhow::Result<Self> {
        let EntropyVm { vm, process, .. } = vm;
        let (guest, idle) = (&vm.guest, vm.vmm().endpoints().idle);
        guest.load_module("vfio_iommu_type1", "allow_unsafe_interrupts=1 disable_hugepages=1")?;
        guest.load_module("vfio_pci", "").outcome()?;
        let function = guest.pci_function(idle.vendor, idle.device)?;
        let function = function.context("there is no idle function")?;
        function.bind("vfio-pci")?;
        Ok(Self(VfioDevice::open(process, &function)?))
    }

    /// Microseconds that a page takes to be mapped, and to be unmapped.
    fn map_and_unmap(&self, vm: &EntropyVm) -> anyhow::Result<(f64, f64)> {
        let (container, length) = (self.0.container(), PAGES * PAGE);
        let ((), map) = vm.clock(|| container.map_dma(IOVA, &vm.buffer, length))?;
        let ((), unmap) = vm.clock(|| container.unmap_dma(IOVA, length))?;
        Ok((map / PAGES as f64, unmap / PAGES as f64))
    }
}
