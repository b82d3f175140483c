//! UNPLUG of memory that the guest has written, by its backing: the host takes memory back,
//! which is most of the work.
//!
//! Files are in the directory for temporary files, which is on tmpfs in an emulated host.

use bare_metal::virtio_mem::{PLUG, UNPLUG};
use tempfile::TempDir;
use testvm::huge_pages::HugePagePool;
use vmm::{
    MemoryDeviceConfig, Size,
    memory::backing::{Backing, HugePageSize},
};

use crate::{
    bare_metal_vm::BareMetalVm,
    monitor::{Guests, Monitor},
    report::{Figure, Report},
};

const REGION: u64 = 1 << 30;
const REQUESTED: u64 = 128 << 20;
const BYTES: u64 = 2 << 20;

const ANONYMOUS: Figure = Figure::request("UNPLUG of 2 MiB written, anonymous", BYTES);
const MEMFD: Figure = Figure::request("UNPLUG of 2 MiB written, memfd", BYTES);
const HUGETLB: Figure = Figure::request("UNPLUG of 2 MiB written, hugetlb-2m", BYTES);
const FILE: Figure = Figure::request("UNPLUG of 2 MiB written, file", BYTES);

/// Has the guests plug, write and unplug in turn.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let pool = HugePagePool::with_free(HugePageSize::Size2M, REQUESTED / BYTES);
    let directory = TempDir::new()?;
    let file = directory.path().join("memory");
    let cases = [
        (Monitor::MOAT, Backing::Anonymous, ANONYMOUS),
        (Monitor::MOAT_UNENFORCED, Backing::Anonymous, ANONYMOUS),
        (Monitor::QEMU_Q35, Backing::Anonymous, ANONYMOUS),
        (Monitor::MOAT, Backing::Memfd, MEMFD),
        (Monitor::MOAT, Backing::Hugetlb2M, HUGETLB),
        (Monitor::MOAT, Backing::File(file), FILE),
    ];
    let mut vms = Vec::new();
    for (monitor, backing, figure) in cases {
        if let (Backing::Hugetlb2M, Err(error)) = (&backing, &pool) {
            report.not_supported(figure, monitor, &error.to_string());
            continue;
        }
        let device = MemoryDeviceConfig {
            requested: Size(REQUESTED),
            memory: backing.into(),
            ..MemoryDeviceConfig::new(REGION)
        };
        let vm = BareMetalVm::start(guests, monitor, 1, device)?;
        vms.push((monitor, figure, vm));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: UNPLUG of written memory");
        for (monitor, figure, vm) in &mut vms {
            let firsts = || 0..REQUESTED / vm.driver.block_size;
            let plugs = vm.requests(PLUG, firsts(), BYTES);
            let unplugs = vm.requests(UNPLUG, firsts(), BYTES);
            vm.clock(&plugs)?;
            vm.program.fill(vm.driver.address, REQUESTED);
            let unplugged = vm.clock(&unplugs)?;
            if round > 0 {
                report.add(*figure, *monitor, unplugged);
            }
        }
    }
    Ok(())
}
