//! A PCI function that a process drives through VFIO.

use super::{
    PAGE, Told,
    groups::{VFIO_PCI, alone, with_user},
};
use crate::{
    guest::{GuestError, Mapping, PciFunction, Process, VfioDevice, VfioRegion},
    report::Finding,
    vm::{Endpoint, Vm, VmError},
};

/// Where the command register is, and some of its bits: PCI 3.0, 6.2.2.
pub const COMMAND: u64 = 4;
const IO: u16 = 1 << 0;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
/// In the command register, keeps a function from raising INTx.
pub const INTX_DISABLE: u16 = 1 << 10;

/// The function, and who drives it.
#[derive(Debug)]
pub struct Assigned {
    /// The function, as its guest's kernel sees it.
    pub function: PciFunction,
    /// The function, as its user has it.
    pub device: VfioDevice,
    /// Its user.
    pub user: Process,
    endpoint: Endpoint,
}

/// Tells a story of a function that a process has open, and whose BARs are decoded. Function and
/// process are its own.
pub fn with_assigned(vm: &Vm, tell: impl FnOnce(&Assigned) -> Result<(), VmError>) -> Told {
    let function = alone(vm)?;
    function.bind(VFIO_PCI)?;
    with_user(vm, |user| {
        let device = VfioDevice::open(user, &function)?;
        let endpoint = vm.vmm().endpoints().idle;
        let function = function.clone();
        let assigned = Assigned { function, device, user: user.clone(), endpoint };
        assigned.set_command(IO | MEMORY | BUS_MASTER)?;
        tell(&assigned)
    })?;
    function.unbind()?;
    Ok(None)
}

impl Assigned {
    /// The command register, as its user sees it.
    pub fn command(&self) -> Result<u16, GuestError> {
        Ok(self.device.read_u32(VfioRegion::Config, COMMAND)? as u16)
    }

    /// The same as the function itself has it.
    pub fn physical_command(&self) -> Result<u16, GuestError> {
        let command = self.function.read_config(COMMAND, 2)?;
        Ok(u16::from_le_bytes([command[0], command[1]]))
    }

    /// Writes it.
    pub fn set_command(&self, command: u16) -> Result<(), GuestError> {
        self.device.write(VfioRegion::Config, COMMAND, &command.to_le_bytes())
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

    /// How many accesses of vCPUs have reached it, as far as the monitor counts them.
    pub fn accesses(&self, vm: &Vm) -> Option<u64> {
        vm.bar_accesses(self.function.address())
    }
}
