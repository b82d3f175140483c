//! The IOMMU with a stock Linux: devices work behind it, and none reaches memory that is not mapped for
//! it.

mod support;

use support::MIB;
use support::linux::{Linux, kernel, machine};
use testvm::guest::{Level, Observe, OpenFlags};
use testvm::vm::{IommuConfig, VmConfig};
use vmm::machine::IommuStatus;
use vmm::{MemoryDeviceConfig, ProbeConfig, Size, VirtioTransport};

const TRANSPORTS: [VirtioTransport; 2] = [VirtioTransport::Mmio, VirtioTransport::Pci];

/// Drivers of all devices.
const MODULES: [&str; 5] =
    ["virtio_mmio", "virtio_pci", "virtio_iommu", "virtio_mem", "virtio_rng"];

/// Boots, and loads the modules in their order.
fn boot(name: &str, virtio_transport: VirtioTransport, bypass: bool, modules: &[&str]) -> Linux {
    let linux = Linux::boot(&VmConfig {
        virtio_transport,
        memory_devices: vec![MemoryDeviceConfig {
            requested: Size(128 * MIB),
            ..MemoryDeviceConfig::new(1024 * MIB)
        }],
        probes: vec![ProbeConfig::default()],
        iommu: Some(IommuConfig::Virtio { bypass }),
        ..machine(&kernel(name), modules)
    });
    for module in modules {
        linux.guest.load_module(module, "").outcome().unwrap();
    }
    linux
}

fn status(linux: &Linux) -> IommuStatus {
    linux.control.status().unwrap().iommu.expect("an IOMMU")
}

/// Reads what the entropy device gives: through its queue, and so by DMA.
fn read_entropy(linux: &Linux) -> usize {
    let process = linux.guest.spawn().unwrap();
    let device = process.open("/dev/hwrng", OpenFlags::RDONLY).unwrap();
    device.read_at(0, 64).unwrap().len()
}

/// DMA refused so far, of all devices.
fn refused(iommu: &IommuStatus) -> u64 {
    iommu.endpoints.iter().map(|endpoint| endpoint.faults).sum()
}

#[test]
fn devices_work_behind_the_iommu_on_each_transport() {
    for name in ["protected", "debian-6.12-cloud"] {
        for transport in TRANSPORTS {
            let linux = boot(name, transport, false, &MODULES);
            // Devices whose drivers came before the IOMMU's are probed again later.
            linux.wait_until_converged(0);
            linux.wait_until("the kernel has the entropy device", || {
                let current = linux.guest.read_text("/sys/class/misc/hw_random/rng_current");
                current.unwrap().starts_with("virtio_rng")
            });
            assert_eq!(read_entropy(&linux), 64, "{name}, {transport:?}");
            let iommu = status(&linux);
            assert!(iommu.mappings > 0, "{name}, {transport:?}: {iommu:?}");
            let attached = iommu.endpoints.iter().filter(|one| one.domain.is_some()).count();
            // virtio-mem and the entropy device; the probe has no driver.
            assert!(attached >= 2, "{name}, {transport:?}: {iommu:?}");
            assert_eq!(refused(&iommu), 0, "{name}, {transport:?}: {iommu:?}");
            for record in linux.guest.kernel_log(0).unwrap() {
                let about_it = record.text.contains("iommu") || record.text.contains("IOMMU");
                assert!(record.level > Level::Warning || !about_it, "{name}: {record:?}");
            }
            linux.guest.power_off().unwrap();
        }
    }
}

#[test]
fn without_a_driver_devices_bypass_the_iommu_or_reach_nothing() {
    // Linux 6.1 as Debian builds it has no driver of a virtio IOMMU.
    for (bypass, works) in [(true, true), (false, false)] {
        let modules = ["virtio_pci", "virtio_mem"];
        let linux = boot("debian-6.1-cloud", VirtioTransport::Pci, bypass, &modules);
        if works {
            linux.wait_until_converged(0);
        } else {
            linux.wait_until("the driver's first request is refused", || {
                refused(&status(&linux)) > 0
            });
        }
        assert_eq!(linux.control.status().unwrap().memory_devices[0].plugged > 0, works);
        assert_eq!(refused(&status(&linux)) > 0, !works);
    }
}
