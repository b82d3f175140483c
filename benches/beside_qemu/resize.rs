//! From the request for another size of a virtio-mem device until the guest has it: 2 GiB more, and
//! 2 GiB less.
//!
//! The guest's driver works block by block. A VMM is fast here if it answers requests fast and does not
//! disturb the vCPU. How much is plugged is polled from the VMM, without disturbing the guest. The guest
//! plugs a piece before it uses it, so growing ends with a short question to the agent: is the last piece
//! online? It unplugs a piece after it has taken it offline, so shrinking needs no such question.
//!
//! The first time that a guest grows it takes memory for page descriptors that it has not used before, which
//! the host then has to allocate; later it takes the same memory again. So each round boots all VMs.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use testvm::vm::{DRIVER, Vm, VmConfig};
use vmm::{MemoryDeviceConfig, VirtioTransport};

use crate::{
    footprint,
    monitor::{self, Guests, Monitor},
    report::{Figure, Report, Unit},
};

const FIRST_GROW: Figure = Figure::new("first grow by 2 GiB", Unit::Seconds);
const GROW: Figure = Figure::new("later grow by 2 GiB", Unit::Seconds);
const FOOTPRINT: Figure =
    Figure::new("resident memory with a 3 GiB region, idle at /init", Unit::Mebibytes);
const SHRINK: Figure = Figure::new("shrink by 2 GiB", Unit::Seconds);

const MONITORS: [Monitor; 5] = [
    Monitor::MOAT,
    Monitor::MOAT_PCI,
    Monitor::MOAT_SMALL_PAGES,
    Monitor::MOAT_UNENFORCED,
    Monitor::QEMU_Q35,
];

const REGION: u64 = 3 << 30;
const CHANGE: u64 = 2 << 30;
/// The region's start, in memory blocks of Linux.
const REGION_BLOCK: u64 = 32;
/// Linux adds memory in blocks of this size to a machine this small.
const LINUX_BLOCK: u64 = 128 << 20;

/// Far more than any VMM needs, in any host.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Resizes all VMs in turn, and measures their footprint before.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..=runs {
        for monitor in MONITORS {
            eprintln!("round {round} of {runs}: grow and shrink {}", monitor.name);
            let (vm, footprint) = ResizableVm::boot(guests, monitor)?;
            let times = [
                (FIRST_GROW, vm.grow()?),
                (SHRINK, vm.shrink()?),
                (GROW, vm.grow()?),
                (SHRINK, vm.shrink()?),
            ];
            if round > 0 {
                report.add(FOOTPRINT, monitor, footprint);
                times.into_iter().for_each(|(figure, time)| report.add(figure, monitor, time));
            }
        }
    }
    for figure in [FIRST_GROW, GROW, SHRINK] {
        report.not_supported(figure, Monitor::QEMU_MICROVM, "it has no place for virtio-mem");
    }
    Ok(())
}

/// A VM with a virtio-mem device whose driver is loaded and has plugged nothing yet.
struct ResizableVm(Vm);

impl ResizableVm {
    /// Boots it, and measures its footprint in MiB before it loads the driver.
    fn boot(guests: &Guests, monitor: Monitor) -> anyhow::Result<(Self, f64)> {
        let device =
            MemoryDeviceConfig { memory: monitor.memory(), ..MemoryDeviceConfig::new(REGION) };
        let memory_devices = vec![device];
        let vm = monitor::boot(monitor, &VmConfig { memory_devices, ..monitor.linux(guests) })?;
        let process = vm.process().context("the monitor is not a process of its own")?;
        let footprint = footprint::measure(process.id())?.total;
        let bus = match monitor.virtio_transport {
            VirtioTransport::Mmio => "virtio_mmio",
            VirtioTransport::Pci => "virtio_pci",
        };
        vm.guest.load_module(bus, "")?;
        vm.guest.load_module(DRIVER, "")?;
        Ok((Self(vm), footprint))
    }

    /// Seconds to 2 GiB plugged and in use.
    fn grow(&self) -> anyhow::Result<f64> {
        let guest = &self.0.guest;
        let before = guest.meminfo()?.total();
        let start = Instant::now();
        self.change(CHANGE, start)?;
        let last = REGION_BLOCK + CHANGE / LINUX_BLOCK - 1;
        let online = format!("/sys/devices/system/memory/memory{last}/online");
        while !matches!(guest.read_text(&online).as_deref(), Ok("1\n")) {
            self.check_timeout(start)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let grown = guest.meminfo()?.total() - before;
        ensure!(grown == CHANGE, "MemTotal of the guest has grown by {grown} bytes, not {CHANGE}");
        Ok(seconds)
    }

    /// Seconds to nothing plugged.
    fn shrink(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.change(0, start)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn change(&self, bytes: u64, start: Instant) -> anyhow::Result<()> {
        self.0.request(bytes)?;
        while self.0.plugged()? != bytes {
            self.check_timeout(start)?;
        }
        Ok(())
    }

    fn check_timeout(&self, start: Instant) -> anyhow::Result<()> {
        if start.elapsed() > TIMEOUT {
            bail!("timed out after {TIMEOUT:?} waiting for a size: {}", self.0.console().tail());
        }
        Ok(())
    }
}
