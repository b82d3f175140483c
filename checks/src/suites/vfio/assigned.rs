//! A PCI function that a process drives through VFIO.

use testvm::{
    PAGE,
    guest::{
        GuestError, InContainer, Ioas, Mapping, PciFunction, Process, VfioDevice, VfioRegion,
        command_register::{self, BUS_MASTER, MEMORY},
    },
    vm::{BarAccesses, Endpoint, Vm, VmError},
};

use crate::{
    framework::{CaseResult, Finding},
    suites::iommu_group::{
        members::{VFIO_PCI, alone, load_iommufd, load_vfio, with_user},
        topology::behind_root_ports,
    },
};

/// The function, and the process that drives it.
#[derive(Debug)]
pub struct Assigned<Access = InContainer> {
    /// The function, as its guest's kernel sees it.
    pub function: PciFunction,
    /// The function, as its user has it.
    pub device: VfioDevice<Access>,
    /// Its user.
    pub user: Process,
    endpoint: Endpoint,
}

/// Runs a case with a function that a process has open, and that decodes its BARs. The function is alone
/// in its group, and the process is the case's own.
pub fn with_assigned(vm: &Vm, run: impl FnOnce(&Assigned) -> Result<(), VmError>) -> CaseResult {
    with_assigned_of(vm, alone(vm)?, idle(vm), VfioDevice::open, run)
}

/// Likewise, of a function that is alone below a root port.
pub fn with_assigned_below_a_root_port(
    vm: &Vm,
    run: impl FnOnce(&Assigned) -> Result<(), VmError>,
) -> CaseResult {
    load_vfio(vm)?;
    let below = behind_root_ports(vm)?.into_iter().next();
    let below = below.ok_or(VmError::Absent("PCI function below a root port"))?;
    below.unbind()?;
    with_assigned_of(vm, below, idle(vm), VfioDevice::open, run)
}

/// Likewise, of a function with MSI-X, a ROM and power management.
pub fn with_equipped(vm: &Vm, run: impl FnOnce(&Assigned) -> Result<(), VmError>) -> CaseResult {
    load_vfio(vm)?;
    let equipped = vm.vmm().endpoints().equipped;
    let function = vm.guest.pci_function(equipped.vendor, equipped.device)?;
    let function = function.ok_or(VmError::Absent("PCI function with MSI-X and a ROM"))?;
    function.unbind()?;
    with_assigned_of(vm, function, equipped, VfioDevice::open, run)
}

/// Likewise, of a function that the process has by iommufd.
pub fn with_assigned_by_iommufd(
    vm: &Vm,
    run: impl FnOnce(&Assigned<Ioas>) -> Result<(), VmError>,
) -> CaseResult {
    load_iommufd(vm)?;
    with_assigned_of(vm, alone(vm)?, idle(vm), VfioDevice::open_by_iommufd, run)
}

fn with_assigned_of<Access>(
    vm: &Vm,
    function: PciFunction,
    endpoint: Endpoint,
    open: impl FnOnce(&Process, &PciFunction) -> Result<VfioDevice<Access>, GuestError>,
    run: impl FnOnce(&Assigned<Access>) -> Result<(), VmError>,
) -> CaseResult {
    function.bind(VFIO_PCI)?;
    with_user(vm, |user| run(&Assigned::new(user, &function, endpoint, open(user, &function)?)?))?;
    function.unbind()?;
    Ok(None)
}

fn idle(vm: &Vm) -> Endpoint {
    vm.vmm().endpoints().idle
}

impl Assigned {
    /// Has a process open an idle function that is bound to vfio-pci, and the function decode its BARs.
    pub fn open(vm: &Vm, user: &Process, function: &PciFunction) -> Result<Self, GuestError> {
        Self::new(user, function, idle(vm), VfioDevice::open(user, function)?)
    }
}

impl<Access> Assigned<Access> {
    fn new(
        user: &Process,
        function: &PciFunction,
        endpoint: Endpoint,
        device: VfioDevice<Access>,
    ) -> Result<Self, GuestError> {
        let (function, user) = (function.clone(), user.clone());
        let assigned = Self { function, device, user, endpoint };
        assigned.set_command(command_register::IO | MEMORY | BUS_MASTER)?;
        Ok(assigned)
    }

    /// The command register, as its user sees it.
    pub fn command(&self) -> Result<u16, GuestError> {
        Ok(self.device.read_u32(VfioRegion::Config, command_register::OFFSET)? as u16)
    }

    /// The same as the function itself has it.
    pub fn physical_command(&self) -> Result<u16, GuestError> {
        self.function.command()
    }

    /// Writes it.
    pub fn set_command(&self, command: u16) -> Result<(), GuestError> {
        self.set_command_with(2, command)
    }

    /// Writes the first bytes of it, up to four: those of the status register are zeros, to which it
    /// is indifferent.
    pub fn set_command_with(&self, length: usize, command: u16) -> Result<(), GuestError> {
        let bytes = u32::from(command).to_le_bytes();
        self.device.write(VfioRegion::Config, command_register::OFFSET, &bytes[..length])
    }

    /// Whether the function decodes memory, in words.
    pub fn decoding(&self) -> Result<&'static str, GuestError> {
        Ok(if self.physical_command()? & MEMORY != 0 { "decoded" } else { "not decoded" })
    }

    /// Has no more memory decoded.
    pub fn disable_memory(&self) -> Result<(), GuestError> {
        self.set_command(self.command()? & !MEMORY)
    }

    /// Has memory decoded.
    pub fn enable_memory(&self) -> Result<(), GuestError> {
        self.set_command(self.command()? | MEMORY)
    }

    /// The BAR that is asked for.
    pub fn bar(&self) -> VfioRegion {
        VfioRegion::Bar(self.bar_number())
    }

    /// Its number.
    pub fn bar_number(&self) -> usize {
        self.endpoint.bar
    }

    /// Maps its first page.
    pub fn map(&self) -> Result<Mapping, GuestError> {
        self.device.map(self.bar_number(), PAGE)
    }

    /// Maps its first page, and uses it.
    pub fn map_and_use(&self) -> Result<Mapping, GuestError> {
        self.map_and_use_of(self.bar_number())
    }

    /// Maps the first page of any BAR, and uses it: VFIO puts pages into a mapping when they are
    /// accessed, so only then there is anything to tear down. A child would use a copy of its own.
    pub fn map_and_use_of(&self, bar: usize) -> Result<Mapping, GuestError> {
        let mapping = self.device.map(bar, PAGE)?;
        mapping.in_process().peek_u32(0)?;
        Ok(mapping)
    }

    /// Reads the register that always reads the same.
    pub fn load(&self, mapping: &Mapping) -> Result<u64, GuestError> {
        mapping.peek(self.endpoint.identity.offset, self.endpoint.identity.width)
    }

    /// Reads it by pread(2).
    pub fn read(&self) -> Result<u64, GuestError> {
        let register = self.endpoint.identity;
        let length = register.width.bytes() as u32;
        let mut bytes = self.device.read(self.bar(), register.offset, length)?;
        bytes.resize(8, 0);
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// What it reads.
    pub fn identity(&self) -> Finding {
        Finding::Read(self.endpoint.identity.value)
    }

    /// The offset of 4 bytes that may be written at any time.
    pub fn scratch(&self) -> u64 {
        self.endpoint.scratch
    }

    /// Writes there.
    pub fn store(&self, mapping: &Mapping) -> Result<(), GuestError> {
        mapping.poke_u32(self.scratch(), 0)
    }

    /// Writes there by pwrite(2).
    pub fn write(&self) -> Result<(), GuestError> {
        self.device.write(self.bar(), self.scratch(), &[0; 4])
    }

    /// Asserts INTx, or does so no longer.
    pub fn assert_intx(&self, is_asserted: bool) -> Result<(), VmError> {
        let write = self.endpoint.intx.ok_or(VmError::Absent("INTx of an idle function"))?;
        let (register, value) = write(is_asserted);
        Ok(self.device.write(self.bar(), register, &value.to_le_bytes())?)
    }

    /// The accesses to its BARs, as far as the monitor counts them.
    pub fn accesses(&self, vm: &Vm) -> Option<BarAccesses> {
        vm.bar_accesses(self.function.address())
    }

    /// Where a capability of its configuration space starts: PCI 3.0, 6.7.
    pub fn capability(&self, id: u8) -> Result<u64, VmError> {
        const POINTER: u64 = 0x34;
        let mut offset = self.device.read_u32(VfioRegion::Config, POINTER)? & 0xfc;
        // Configuration space has room for 48 capabilities.
        for _ in 0..48 {
            let header = self.device.read_u32(VfioRegion::Config, offset.into())?;
            if offset != 0 && header as u8 == id {
                return Ok(offset.into());
            }
            offset = header >> 8 & 0xfc;
        }
        Err(VmError::Absent("capability in the configuration space of a function"))
    }

    /// Where its MSI-X table is: PCI 3.0, 6.8.2.
    pub fn msix_table(&self) -> Result<MsixTable, VmError> {
        const TABLE: u64 = 4;
        let capability = self.capability(MSIX)?;
        let control = self.device.read_u32(VfioRegion::Config, capability)? >> 16;
        let (bar, offset) = self.msix_structure(TABLE)?;
        Ok(MsixTable { bar, offset, entries: u64::from(control & 0x7ff) + 1 })
    }

    /// Whether its first MSI-X vector waits to be sent: its bit of the Pending Bit Array, while memory is
    /// decoded.
    pub fn is_first_vector_pending(&self) -> Result<bool, VmError> {
        const PENDING_BIT_ARRAY: u64 = 8;
        let (bar, offset) = self.msix_structure(PENDING_BIT_ARRAY)?;
        Ok(self.device.read_u32(VfioRegion::Bar(bar), offset)? & 1 != 0)
    }

    /// The BAR and the offset in it that a register of the MSI-X capability names.
    fn msix_structure(&self, register: u64) -> Result<(usize, u64), VmError> {
        let place = self.device.read_u32(VfioRegion::Config, self.capability(MSIX)? + register)?;
        Ok(((place & 0b111) as usize, (place & !0b111).into()))
    }

    /// Sets the power state: PCI Power Management 1.2, 3.2.4.
    pub fn set_power_state(&self, state: PowerState) -> Result<(), VmError> {
        const POWER_MANAGEMENT: u8 = 0x01;
        let control = self.capability(POWER_MANAGEMENT)? + 4;
        Ok(self.device.write(VfioRegion::Config, control, &[state as u8, 0])?)
    }
}

/// The id of the MSI-X capability.
const MSIX: u8 = 0x11;

/// A power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PowerState {
    /// Awake.
    D0 = 0,
    /// Asleep, with its configuration space still there.
    D3Hot = 3,
}

/// Where a function's MSI-X table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixTable {
    /// In which BAR.
    pub bar: usize,
    /// Where in it.
    pub offset: u64,
    /// How many entries it has.
    pub entries: u64,
}

impl MsixTable {
    const ENTRY: u64 = 16;
    /// Where the vector control is in an entry.
    pub const VECTOR_CONTROL: u64 = 12;
    /// The vector control of an entry that is masked, as it is after a reset.
    pub const MASKED: u32 = 1;

    /// Where it ends in its BAR.
    pub fn end(&self) -> u64 {
        self.offset + self.entries * Self::ENTRY
    }
}
