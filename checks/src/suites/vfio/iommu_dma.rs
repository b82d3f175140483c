//! F15, G9, G10 and P14: what a device that user space has can reach by DMA.
//!
//! An IOMMU lets it reach what its container maps, and reports the rest. Interrupts are DMA too: where
//! they are not remapped a device can raise any, and VFIO needs a parameter that accepts this.

use testvm::{
    PAGE,
    guest::{
        Errno, GuestError, Mapping, OpenFlags, PciFunction, Process, Protection, Sharing,
        VfioContainer, VfioDevice, VfioGroup, VfioIommu,
    },
    vm::{Direction, DmaEngine, Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Expect as _, Finding, Profile, Recorder, Requirement, Scenario},
    suites::{
        iommu_group::members::{VFIO_PCI, alone, functions, with_user},
        pci_bar::bar::{Bar, Way},
        vfio::assigned::{Assigned, with_assigned},
    },
};

/// An I/O virtual address that is not the address of any memory.
pub const IOVA: u64 = 0xa000_0000;

/// What memory holds, and what DMA is to bring there.
pub const BEFORE: u64 = 0x600d_0000_0000_600d;
pub const AFTER: u64 = 0xbad0_0000_0000_0bad;

/// G9: a device that user space has reaches memory where it is mapped for it, and nothing else: memory
/// is untouched, and the kernel's log has the fault. Control: where it is mapped, it is reached.
pub fn mapped_memory_only(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let registers = assigned.map()?;
        let engine = Engine::new(vm, &assigned.function, &registers)?;
        let memory = Memory::allocate(&assigned.user)?;
        let (_, page) = memory.physical_addresses(&assigned.user)?;
        let container = assigned.device.container();

        container.map_dma(IOVA, &memory.target, PAGE)?;
        container.map_dma(IOVA + PAGE, &memory.source, PAGE)?;
        engine.load(IOVA + PAGE)?;
        engine.store(IOVA)?;
        t.when("mapped");
        t.control("memory after DMA", AFTER, memory.read())?;

        memory.restore()?;
        let start = vm.guest.log_end()?;
        engine.store(page)?;
        t.when("not mapped");
        t.check("memory at that address after DMA", BEFORE, memory.read())?;
        let logged = logged_since(vm, start, page)?;
        t.check("the kernel's log", "a fault at that address", logged)?;

        container.unmap_dma(IOVA, PAGE)?;
        let start = vm.guest.log_end()?;
        engine.store(IOVA)?;
        t.when("unmapped again");
        t.check("memory after DMA", BEFORE, memory.read())?;
        let logged = logged_since(vm, start, IOVA)?;
        t.check("the kernel's log", "a fault at that address", logged)?;

        container.map_dma(page, &memory.target, PAGE)?;
        engine.store(page)?;
        t.when("mapped to its own address");
        t.control("memory after DMA", AFTER, memory.read())
    })
}

/// G9, its control: without an IOMMU the device reaches all memory.
pub fn all_memory(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::idle(vm)?;
    let registers = bar.map(Way::Sysfs)?;
    with_user(vm, |user| {
        let memory = Memory::allocate(user)?;
        let engine = Engine::new(vm, &bar.function, &registers)?;
        let (source, target) = memory.physical_addresses(user)?;
        engine.load(source)?;
        engine.store(target)?;
        t.when("no IOMMU");
        t.control("memory after DMA", AFTER, memory.read())
    })?;
    Ok(None)
}

/// G10: where interrupts are not remapped VFIO refuses the IOMMU, EPERM, unless the parameter
/// allow_unsafe_interrupts accepts this. Control: with it, OK.
pub fn unsafe_interrupts(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const ACCEPTED: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    let function = alone(vm)?;
    function.bind(VFIO_PCI)?;
    let mut set_iommu = |accepted| {
        vm.guest.write_file(ACCEPTED, accepted)?;
        with_user(vm, |user| {
            let (group, container) =
                (VfioGroup::open(user, &function)?, VfioContainer::open(user)?);
            group.set_container(&container)?;
            t.when(format_args!("allow_unsafe_interrupts={accepted}"));
            let set = container.set_iommu(VfioIommu::Type1v2);
            match accepted {
                "N" => t.check("SET_IOMMU", Errno::EPERM, set),
                _ => t.control("SET_IOMMU", Finding::Done, set),
            }
        })
    };
    set_iommu("N")?;
    set_iommu("Y")?;
    function.unbind()?;
    Ok(None)
}

/// P14: a mapping of a BAR that was torn down cannot be given to a device either: EFAULT.
/// Control: before the driver comes, OK.
pub fn torn_down_mapping(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let (bar, function) = (Bar::driven(vm)?, alone(vm)?);
    function.bind(VFIO_PCI)?;
    with_user(vm, |user| {
        let device = VfioDevice::open(user, &function)?;
        let container = device.container();
        let resource = bar.function.file(&format!("resource{}", bar.index()));
        let resource = user.open(&resource, OpenFlags::RDWR)?;
        let held = resource.mmap(0, PAGE, Protection::ReadWrite, Sharing::Shared)?;
        let mapped = container.map_dma(IOVA, &held, PAGE);
        t.when("before bind");
        t.control("MAP_DMA of a mapping by sysfs", Finding::Done, mapped)?;
        container.unmap_dma(IOVA, PAGE)?;
        bar.claim()?;
        t.when("held across bind");
        let mapped = container.map_dma(IOVA, &held, PAGE);
        let refused = Errno::EFAULT.by(Way::Sysfs.torn_down_by());
        t.check("MAP_DMA of a mapping by sysfs", refused, mapped)
    })?;
    bar.release()?;
    function.unbind()?;
    Ok(None)
}

/// F15: a device reaches registers of another one by DMA where user space has mapped them for it, and
/// the mapping stays when they are no longer decoded: then the accesses just reach no device.
/// Control: decoded, what they hold arrives in memory.
pub fn peer_to_peer(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let idle = vm.vmm().endpoints().idle;
    let (function, peer) = (alone(vm)?, functions(vm)?.pop());
    let peer = peer.ok_or(VmError::Absent("second PCI function for peer-to-peer DMA"))?;
    function.bind(VFIO_PCI)?;
    with_user(vm, |user| {
        let device = VfioDevice::open(user, &function)?;
        let registers = device.map(idle.bar, PAGE)?;
        // As wide as the registers are.
        let engine = Engine { length: 4, ..Engine::new(vm, &function, &registers)? };
        let memory = Memory::allocate(user)?;
        device.container().map_dma(IOVA, &memory.target, PAGE)?;
        peer.bind(VFIO_PCI)?;
        let peer = Assigned::open(vm, user, &peer)?;
        device.container().map_dma(IOVA + PAGE, &peer.map()?, PAGE)?;
        let fetched = || {
            // What an earlier transfer left in the device.
            memory.restore()?;
            engine.load(IOVA)?;
            engine.load(IOVA + PAGE)?;
            engine.store(IOVA)?;
            let fetched = Finding::from(memory.target.peek_u32(0)?);
            Ok::<_, VmError>(if fetched == peer.identity() { "what they hold" } else { "nothing" })
        };
        t.when("decoded");
        t.control("registers of a peer, by DMA", "what they hold", fetched()?)?;
        peer.disable_memory()?;
        t.when("not decoded");
        t.check("registers of a peer, by DMA", "nothing", fetched()?)
    })?;
    peer.unbind()?;
    function.unbind()?;
    Ok(None)
}

/// Two pages of a process: what is to be moved, and what it is to be moved over.
pub struct Memory {
    pub source: Mapping,
    pub target: Mapping,
}

impl Memory {
    pub fn allocate(process: &Process) -> Result<Self, GuestError> {
        // Without children: one that is forked would share the pages, and the next store copy them.
        let page = || Ok(process.allocate(PAGE)?.in_process());
        let memory = Self { source: page()?, target: page()? };
        memory.source.poke_u64(0, AFTER)?;
        memory.restore()?;
        Ok(memory)
    }

    pub fn restore(&self) -> Result<(), GuestError> {
        self.target.poke_u64(0, BEFORE)
    }

    pub fn read(&self) -> Result<u64, GuestError> {
        self.target.peek_u64(0)
    }

    /// Guest physical addresses of both: Linux's Documentation/admin-guide/mm/pagemap.rst.
    fn physical_addresses(&self, process: &Process) -> Result<(u64, u64), VmError> {
        const ENTRY: u64 = 8;
        const FRAME: u64 = (1 << 55) - 1;
        let pagemap = process.open("/proc/self/pagemap", OpenFlags::RDONLY)?;
        let address = |page: &Mapping| {
            let entry = pagemap.read_at(page.address() / PAGE * ENTRY, ENTRY as u32)?;
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            match entry & FRAME {
                0 => Err(VmError::Absent("frame number in /proc/self/pagemap")),
                frame => Ok(frame * PAGE),
            }
        };
        Ok((address(&self.source)?, address(&self.target)?))
    }
}

/// A device's DMA engine, and a mapping of its registers.
pub struct Engine<'a> {
    vm: &'a Vm,
    engine: DmaEngine,
    registers: Mapping,
    /// How many bytes it moves at once.
    length: u32,
}

impl<'a> Engine<'a> {
    pub fn new(vm: &'a Vm, function: &PciFunction, registers: &Mapping) -> Result<Self, VmError> {
        let engine = vm.vmm().endpoints().idle.dma;
        let engine = engine.ok_or(VmError::Absent("DMA engine that its machine should have"))?;
        function.enable_bus_master()?;
        Ok(Self { vm, engine, registers: registers.in_process(), length: size_of::<u64>() as u32 })
    }

    /// Has the device read memory.
    pub fn load(&self, address: u64) -> Result<(), VmError> {
        self.transfer(Direction::FromMemory, address)
    }

    /// Has the device write to memory what it read last.
    pub fn store(&self, address: u64) -> Result<(), VmError> {
        self.transfer(Direction::ToMemory, address)
    }

    /// Returns when it is over, whatever came of it.
    fn transfer(&self, direction: Direction, address: u64) -> Result<(), VmError> {
        let DmaEngine { start, status, busy: (mask, busy) } = self.engine;
        for (register, value) in start(direction, address as u32, self.length) {
            self.registers.poke_u32(register, value)?;
        }
        self.vm.wait_until("a transfer is over", || {
            Ok(self.registers.peek_u32(status)? & mask != busy)
        })
    }
}

/// Whether the kernel's log has a fault at an address, in words. It comes after an interrupt.
fn logged_since(vm: &Vm, record: u64, address: u64) -> Result<&'static str, VmError> {
    let address = format!("{address:#x}");
    let logged = vm.wait_until(&format!("the kernel's log has a fault at {address}"), || {
        let log = vm.guest.kernel_log(record)?;
        Ok(log.iter().any(|it| it.text.contains("fault") && it.text.contains(&address)))
    });
    match logged {
        Ok(()) => Ok("a fault at that address"),
        Err(VmError::TimedOut(_)) => Ok("no fault at that address"),
        Err(error) => Err(error),
    }
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "P14",
        title: "DMA cannot be directed to a mapping that was torn down",
        requires: &[Requirement::Iommu, Requirement::VirtioPci, Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, torn_down_mapping)],
    },
    Scenario {
        id: "F15",
        title: "DMA reaches another device's BAR only while that is decoded",
        requires: &[Requirement::Vfio, Requirement::Iommu],
        cases: &[Case::InGuest(Profile::Iommu, peer_to_peer)],
    },
    Scenario {
        id: "G9",
        title: "a device that user space has reaches memory that is mapped for it, and no other",
        requires: &[Requirement::Iommu, Requirement::Vfio, Requirement::PageFlags],
        cases: &[
            Case::InGuest(Profile::Plain, all_memory),
            Case::InGuest(Profile::Iommu, mapped_memory_only),
        ],
    },
    Scenario {
        id: "G10",
        title: "where interrupts are not remapped user space gets no device unless that is accepted",
        requires: &[Requirement::Iommu, Requirement::Vfio],
        cases: &[Case::InGuest(Profile::IommuWithoutRemapping, unsafe_interrupts)],
    },
];
