//! The catalogue: what a guest must do with device memory, as stories about a virtual machine.
//!
//! A scenario's story starts in a guest whose driver has not come yet, and may go on when it has.
//! Scenarios share guests, because booting takes longer than all they do. Each has a control: an
//! observation that shows that its check can fail.

mod assigned;
mod bar_drivers;
mod bar_exclusion;
mod bar_revocation;
mod bars;
mod boot;
mod configuration;
mod dev_mem;
mod exclusion;
mod gap;
mod group_orders;
mod group_ownership;
mod group_topology;
mod groups;
mod iommu_dma;
mod iommufd;
mod need;
mod oracle;
mod overlay;
mod revocation;
mod unload;
mod vfio_dma;
mod vfio_interrupts;
mod vfio_memory;
mod vfio_regions;
mod vfio_reset;
mod vfio_unbind;

pub use boot::Boot;
pub use need::Need;

use crate::{
    kernel::GuestKernel,
    report::Observations,
    vm::{Feature, Vm, VmError},
};

/// Something that a guest must do, and how one finds out.
pub struct Scenario {
    /// Its name in reports and on command lines.
    pub id: &'static str,
    /// What holds where it passes.
    pub title: &'static str,
    /// What a kernel, or its monitor, must have for it.
    pub needs: &'static [Need],
    /// How one finds out.
    pub stories: &'static [Story],
}

/// How one finds out.
#[derive(Clone, Copy)]
pub enum Story {
    /// In a guest, which it leaves as it found it, but for what the device requests.
    Guest(Boot, fn(&Vm, &mut Observations) -> Told),
    /// In a guest, which it leaves in disorder: it is told last.
    Last(Boot, fn(&Vm, &mut Observations) -> Told),
    /// In what is known about a kernel.
    Kernel(fn(&GuestKernel, &mut Observations) -> Result<(), VmError>),
}

/// A story as far as it goes without the driver, and what remains of it.
pub type Told = Result<Option<AfterLoad>, VmError>;

/// What remains of a story when the driver has come.
pub type AfterLoad = Box<dyn FnOnce(&Vm, &mut Observations) -> Result<(), VmError>>;

/// The story goes on so when the driver has come.
fn after_load(rest: impl FnOnce(&Vm, &mut Observations) -> Result<(), VmError> + 'static) -> Told {
    Ok(Some(Box::new(rest)))
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

use Story::{Guest, Kernel, Last};

/// Every scenario.
pub static CATALOGUE: &[Scenario] = &[
    Scenario {
        id: "VM1",
        title: "before the driver comes, /dev/mem maps the region",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Plain, exclusion::mmap_before_load)],
    },
    Scenario {
        id: "VM2",
        title: "before the driver comes, read and write of /dev/mem do not reach the region",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Movable, exclusion::read_and_write_before_load)],
    },
    Scenario {
        id: "VM3",
        title: "/dev/mem does not map plugged memory (on x86 for being RAM, EXCLUSIVE or not)",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Plain, exclusion::mmap_of_plugged_memory)],
    },
    Scenario {
        id: "VM4",
        title: "/dev/mem maps no part of the region, and all that is beside it",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Plain, exclusion::mmap_of_the_rest_of_the_region)],
    },
    Scenario {
        id: "VM5",
        title: "/dev/mem does not map what is unplugged in a memory block that is added",
        needs: &[Need::Driver, Need::DevMem, Need::PageFlags],
        stories: &[Guest(Boot::Movable, exclusion::mmap_of_an_unplugged_subblock)],
    },
    Scenario {
        id: "VM6",
        title: "/dev/mem maps no part of a region in which nothing is plugged",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Offline, exclusion::mmap_with_nothing_plugged)],
    },
    Scenario {
        id: "VM7",
        title: "read and write of /dev/mem do not reach the region",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Plain, exclusion::read_and_write)],
    },
    Scenario {
        id: "VM8",
        title: "iomem=relaxed opens other devices' memory, and not the region",
        needs: &[Need::Driver, Need::DevMem, Need::IoStrictDevmem],
        stories: &[
            Guest(Boot::Plain, exclusion::another_device_is_closed),
            Guest(Boot::Relaxed, exclusion::relaxed_for_other_devices_only),
        ],
    },
    Scenario {
        id: "VM9",
        title: "a PCI device's BAR over the region is no way to it, for the region is EXCLUSIVE",
        needs: &[Need::Driver, Need::VirtioPci],
        stories: &[
            Guest(Boot::Overlaid, overlay::new_mappings),
            Guest(Boot::OverlaidRelaxed, overlay::new_mappings),
        ],
    },
    Scenario {
        id: "VM10",
        title: "a held mapping of a PCI device's BAR over the region is torn down",
        needs: &[Need::Driver],
        stories: &[
            Guest(Boot::Overlaid, overlay::held_mappings),
            Guest(Boot::OverlaidRelaxed, overlay::held_mappings),
        ],
    },
    Scenario {
        id: "VM11",
        title: "a held mapping of the region is torn down when the driver comes, for good",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[
            Guest(Boot::Plain, revocation::held_mappings),
            Guest(Boot::Relaxed, revocation::held_mappings),
            Guest(Boot::Movable, revocation::held_mapping_after_unload),
        ],
    },
    Scenario {
        id: "VM12",
        title: "a private copy of a page of the region is torn down too",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Plain, revocation::copied_page)],
    },
    Scenario {
        id: "VM13",
        title: "the kernel itself does not reach the region through a torn-down mapping",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Plain, revocation::access_by_the_kernel)],
    },
    Scenario {
        id: "VM14",
        title: "a driver that leaves memory behind leaves the region closed",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Last(Boot::Offline, unload::unclean)],
    },
    Scenario {
        id: "VM15",
        title: "a driver that leaves nothing behind opens the region, and the next one closes it",
        needs: &[Need::Driver, Need::DevMem],
        stories: &[Guest(Boot::Movable, unload::clean)],
    },
    Scenario {
        id: "VM16",
        title: "movable memory can be unplugged, so that the driver can be unloaded",
        needs: &[Need::Driver],
        stories: &[
            Guest(Boot::Movable, unload::movable_memory),
            Guest(Boot::Relaxed, unload::kernel_memory),
        ],
    },
    Scenario {
        id: "VM17",
        title: "a driver that finds memory plugged has all of it unplugged first",
        needs: &[Need::Driver, Need::Monitor(Feature::Witness)],
        stories: &[Guest(Boot::Offline, unload::unplug_all)],
    },
    Scenario {
        id: "VM18",
        title: "the host sees no access to unplugged memory, whatever /dev/mem is asked for",
        needs: &[Need::Driver, Need::DevMem, Need::Monitor(Feature::Witness)],
        stories: &[Guest(Boot::Plain, oracle::nothing_reaches_unplugged_memory)],
    },
    Scenario {
        id: "VM21",
        title: "a kernel has virtio-mem only if its /dev/mem is strict or absent",
        needs: &[Need::OtherConfigs],
        stories: &[Kernel(configuration::strict_or_absent)],
    },
    Scenario {
        id: "VM22",
        title: "lockdown closes /dev/mem",
        needs: &[Need::DevMem, Need::Lockdown],
        stories: &[
            Guest(Boot::Plain, configuration::dev_mem_without_lockdown),
            Guest(Boot::Lockdown, configuration::dev_mem_under_lockdown),
        ],
    },
    Scenario {
        id: "P1",
        title: "a BAR that no driver has claimed is open",
        needs: &[Need::DevMem],
        stories: &[Guest(Boot::Plain, bar_exclusion::idle)],
    },
    Scenario {
        id: "P2",
        title: "a BAR that a driver has claimed is closed, by /dev/mem, sysfs and procfs",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_exclusion::claimed),
            Guest(Boot::Relaxed, bar_exclusion::claimed),
        ],
    },
    Scenario {
        id: "P3",
        title: "read of /dev/mem reaches a BAR only if there is RAM above it and no claim",
        needs: &[Need::Driver, Need::DevMem, Need::VirtioPci],
        stories: &[
            Guest(Boot::Plain, bar_exclusion::read),
            Guest(Boot::Relaxed, bar_exclusion::read),
        ],
    },
    Scenario {
        id: "P4",
        title: "a held mapping of a BAR by sysfs is torn down when a driver claims it",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::held_by_sysfs),
            Guest(Boot::Relaxed, bar_revocation::held_by_sysfs),
        ],
    },
    Scenario {
        id: "P5",
        title: "a held mapping of a BAR by /dev/mem is torn down when a driver claims it",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::held_by_dev_mem),
            Guest(Boot::Relaxed, bar_revocation::held_by_dev_mem),
        ],
    },
    Scenario {
        id: "P6",
        title: "a held mapping of a BAR by procfs is torn down when a driver claims it",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::held_by_procfs),
            Guest(Boot::Relaxed, bar_revocation::held_by_procfs),
        ],
    },
    Scenario {
        id: "P7",
        title: "a mapping that a child has inherited, and uses, is torn down too",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::inherited),
            Guest(Boot::Relaxed, bar_revocation::inherited),
        ],
    },
    Scenario {
        id: "P8",
        title: "of a mapping of two BARs only the claimed one is torn down",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::two_bars),
            Guest(Boot::Relaxed, bar_revocation::two_bars),
        ],
    },
    Scenario {
        id: "P9",
        title: "a private copy of a page of a BAR is torn down too",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::copied_page),
            Guest(Boot::Relaxed, bar_revocation::copied_page),
        ],
    },
    Scenario {
        id: "P10",
        title: "a mapping that was torn down stays so when the driver has gone",
        needs: BARS,
        stories: &[
            Guest(Boot::Plain, bar_revocation::after_release),
            Guest(Boot::Relaxed, bar_revocation::after_release),
        ],
    },
    Scenario {
        id: "P11",
        title: "a driver that claims no BAR leaves mappings alone",
        needs: &[Need::DevMem, Need::VirtioPci, Need::UioPciGeneric, Need::IoStrictDevmem],
        stories: &[Guest(Boot::Plain, bar_drivers::driver_without_claim)],
    },
    Scenario {
        id: "P12",
        title: "vfio-pci claims a BAR when its user maps it, and no sooner",
        needs: &[Need::DevMem, Need::VirtioPci, Need::Vfio],
        stories: &[Guest(Boot::Iommu, bar_drivers::claim_on_use)],
    },
    Scenario {
        id: "P13",
        title: "a claim across a page boundary has both its pages torn down (known gap: only one)",
        needs: &[Need::DevMem, Need::AcpiTables, Need::VirtioMmio, Need::IoStrictDevmem],
        stories: &[Guest(Boot::Misaligned, gap::tail_page)],
    },
    Scenario {
        id: "P14",
        title: "a mapping that was torn down is nothing that DMA can be directed to",
        needs: &[Need::Iommu, Need::VirtioPci, Need::Vfio],
        stories: &[Guest(Boot::Iommu, iommu_dma::torn_down_mapping)],
    },
    Scenario {
        id: "F1",
        title: "a BAR that is not decoded cannot be reached by VFIO",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_memory::not_decoded)],
    },
    Scenario {
        id: "F2",
        title: "a mapping by VFIO works again when its BAR is decoded again",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_memory::decoded_again)],
    },
    Scenario {
        id: "F3",
        title: "a BAR may be mapped by VFIO while it is not decoded, and not be used",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_memory::mapped_while_not_decoded)],
    },
    Scenario {
        id: "F4",
        title: "VFIO sees decoding turned off by a write of any width",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_memory::widths)],
    },
    Scenario {
        id: "F5",
        title: "VFIO does not show the MSI-X table, and what is beside it as any BAR",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_regions::msix_table)],
    },
    Scenario {
        id: "F6",
        title: "VFIO programs the MSI-X table while its BAR is not decoded",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_interrupts::set_up_while_not_decoded)],
    },
    Scenario {
        id: "F7",
        title: "MSI-X arrives by VFIO whether or not memory is decoded",
        needs: PROBE,
        stories: &[Guest(Boot::Iommu, vfio_interrupts::raised)],
    },
    Scenario {
        id: "F8",
        title: "VFIO does not read a ROM while memory is not decoded, and tells its size",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_regions::rom)],
    },
    Scenario {
        id: "F9",
        title: "VFIO drops what an event has it write to a BAR that is not decoded",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_memory::write_on_event)],
    },
    Scenario {
        id: "F10",
        title: "VFIO restores what its user has set up when it resets a function",
        needs: PROBE,
        stories: &[Guest(Boot::Iommu, vfio_reset::resets)],
    },
    Scenario {
        id: "F11",
        title: "nothing reaches a function that VFIO is resetting",
        needs: PROBE,
        stories: &[Guest(Boot::Iommu, vfio_reset::used_in_a_reset)],
    },
    Scenario {
        id: "F12",
        title: "a BAR of a function that sleeps cannot be reached by VFIO",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_memory::asleep)],
    },
    Scenario {
        id: "F13",
        title: "VFIO leaves a BAR where it is, and maps it shared",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_regions::base_address)],
    },
    Scenario {
        id: "F14",
        title: "DMA can be directed to a BAR by VFIO only while it is decoded",
        needs: &[Need::Vfio, Need::Iommu],
        stories: &[
            Guest(Boot::Plain, vfio_dma::without_an_iommu),
            Guest(Boot::Iommu, vfio_dma::to_a_bar),
        ],
    },
    Scenario {
        id: "F15",
        title: "DMA reaches another device's BAR only while that is decoded",
        needs: &[Need::Vfio, Need::Iommu],
        stories: &[Guest(Boot::Iommu, iommu_dma::peer_to_peer)],
    },
    Scenario {
        id: "F16",
        title: "VFIO masks INTx when it is raised, until its user unmasks it",
        needs: &[Need::Vfio],
        stories: &[Guest(Boot::Iommu, vfio_interrupts::level_triggered)],
    },
    Scenario {
        id: "F17",
        title: "a function that user space uses by VFIO is not taken from it",
        needs: &[Need::Vfio],
        stories: &[Last(Boot::Iommu, vfio_unbind::unbind)],
    },
    Scenario {
        id: "F18",
        title: "a BAR that is not decoded cannot be reached by VFIO without groups either",
        needs: IOMMUFD,
        stories: &[Guest(Boot::Iommu, iommufd::not_decoded)],
    },
    Scenario {
        id: "G1",
        title: "the functions of a device without access control share an IOMMU group",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_topology::functions_of_a_device)],
    },
    Scenario {
        id: "G2",
        title: "devices share a group with the bridge above them, and user space may have it",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_topology::behind_bridges)],
    },
    Scenario {
        id: "G3",
        title: "user space is refused a group in which a driver has bound",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_ownership::claim_beside_a_driver)],
    },
    Scenario {
        id: "G4",
        title: "a driver is refused a group that user space owns",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_ownership::bind_beside_a_user)],
    },
    Scenario {
        id: "G5",
        title: "a driver that comes leaves a group alone that user space owns",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_ownership::load_beside_a_user)],
    },
    Scenario {
        id: "G6",
        title: "drivers that do no DMA may bind in a group that user space owns",
        needs: &[Need::Iommu, Need::Vfio, Need::UioPciGeneric, Need::PciStub],
        stories: &[Guest(Boot::Iommu, group_ownership::tolerated_drivers)],
    },
    Scenario {
        id: "G7",
        title: "user space owns a group until it has given up all that it had of it",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_ownership::last_reference)],
    },
    Scenario {
        id: "G8",
        title: "nobody else opens a group that user space owns, or changes its type",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_ownership::exclusive_group)],
    },
    Scenario {
        id: "G9",
        title: "a device that user space has reaches memory that is mapped for it, and no other",
        needs: &[Need::Iommu, Need::Vfio, Need::PageFlags],
        stories: &[
            Guest(Boot::Plain, iommu_dma::all_memory),
            Guest(Boot::Iommu, iommu_dma::mapped_memory_only),
        ],
    },
    Scenario {
        id: "G10",
        title: "where interrupts are not remapped user space gets no device unless that is accepted",
        needs: &[Need::Iommu, Need::Vfio],
        stories: &[Guest(Boot::IommuWithoutRemapping, iommu_dma::unsafe_interrupts)],
    },
    Scenario {
        id: "G11",
        title: "a function is in an IOMMU group once a driver has been tried on it",
        needs: GROUPS,
        stories: &[
            Guest(Boot::Plain, group_topology::no_group),
            Guest(Boot::Iommu, group_topology::group_of_a_function),
        ],
    },
    Scenario {
        id: "G12",
        title: "a group has one owner, in whatever order the kernel and user space come and go",
        needs: GROUPS,
        stories: &[Guest(Boot::Iommu, group_orders::every_order)],
    },
    Scenario {
        id: "G13",
        title: "a group has one owner, if user space has a member of it by iommufd",
        needs: &[Need::Iommu, Need::Vfio, Need::Iommufd, Need::UioPciGeneric],
        stories: &[Guest(Boot::Iommu, iommufd::one_owner)],
    },
    Scenario {
        id: "G14",
        title: "a device that user space has by iommufd reaches memory that is mapped for it only",
        needs: IOMMUFD,
        stories: &[Guest(Boot::Iommu, iommufd::mapped_memory_only)],
    },
];

/// What scenarios about a BAR need that virtio-pci claims.
const BARS: &[Need] = &[Need::DevMem, Need::VirtioPci];

/// What scenarios about IOMMU groups need.
const GROUPS: &[Need] = &[Need::Iommu, Need::Vfio, Need::UioPciGeneric];

/// What scenarios need in which user space has a function by iommufd.
const IOMMUFD: &[Need] = &[Need::Iommu, Need::Vfio, Need::Iommufd];

/// What scenarios need in which a function is to do things that not every one can.
const PROBE: &[Need] = &[Need::Vfio, Need::Monitor(Feature::Probe)];

/// A scenario that is not in the catalogue.
#[derive(Debug, thiserror::Error)]
#[error("there is no scenario {0}; `moat check --list` shows all of them")]
pub struct UnknownScenario(String);

/// The scenarios of these ids in the catalogue's order; all of them if none is named.
pub fn select(ids: &[String]) -> Result<Vec<&'static Scenario>, UnknownScenario> {
    let is_named = |scenario: &Scenario| {
        ids.is_empty() || ids.iter().any(|id| id.eq_ignore_ascii_case(scenario.id))
    };
    let is_unknown =
        |id: &&String| !CATALOGUE.iter().any(|scenario| id.eq_ignore_ascii_case(scenario.id));
    match ids.iter().find(is_unknown) {
        Some(id) => Err(UnknownScenario(id.clone())),
        None => Ok(CATALOGUE.iter().filter(|scenario| is_named(scenario)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_scenario_has_an_id_of_its_own_and_a_story() {
        let ids: HashSet<_> = CATALOGUE.iter().map(|scenario| scenario.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
        assert!(CATALOGUE.iter().all(|scenario| !scenario.stories.is_empty()));
    }

    #[test]
    fn scenarios_are_selected_by_id_in_the_order_of_the_catalogue() {
        let ids = |names: &[&str]| -> Vec<_> {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            select(&names).unwrap().iter().map(|scenario| scenario.id).collect()
        };
        assert_eq!(ids(&["vm11", "VM3"]), ["VM3", "VM11"]);
        assert_eq!(ids(&[]).len(), CATALOGUE.len());
        let error = select(&["VM3".to_owned(), "VM99".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no scenario VM99"), "{error}");
    }
}
