//! PCI functions of a guest, by way of sysfs: Linux's Documentation/PCI/sysfs-pci.rst and
//! Documentation/ABI/testing/sysfs-bus-pci.

use std::{fmt, ops::Range, str::FromStr};

use agent_protocol::Errno;

use super::{Guest, GuestError, Observe as _, OpenFlags, Outcome, Process};

const BUS: &str = "/sys/bus/pci";

/// The command register of a function, and some of its bits: PCI 3.0, 6.2.2.
pub mod command_register {
    /// Where it is in configuration space.
    pub const OFFSET: u64 = 4;
    /// Has I/O ports decoded.
    pub const IO: u16 = 1 << 0;
    /// Has memory decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// Lets a function do DMA and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Keeps a function from raising INTx.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// The status register of a function, and one of its bits: PCI 3.0, 6.2.3.
pub mod status_register {
    /// Where it is in configuration space.
    pub const OFFSET: u64 = 6;
    /// The function has an INTx interrupt pending, whether or not it may raise it.
    pub const INTERRUPT: u16 = 1 << 3;
}

/// Where a PCI function is; all are in segment 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct PciAddress {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

impl fmt::Display for PciAddress {
    /// As the kernel writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |digits| u8::from_str_radix(digits, 16).map_err(drop);
        let (bus, rest) =
            text.strip_prefix("0000:").and_then(|rest| rest.split_once(':')).ok_or(())?;
        let (device, function) = rest.split_once('.').ok_or(())?;
        Ok(Self { bus: number(bus)?, device: number(device)?, function: number(function)? })
    }
}

/// A PCI function.
#[derive(Clone, Debug)]
pub struct PciFunction {
    helper: Process,
    address: PciAddress,
}

impl Guest {
    /// The first PCI function with these ids.
    pub fn pci_function(
        &self,
        vendor: u16,
        device: u16,
    ) -> Result<Option<PciFunction>, GuestError> {
        Ok(self.pci_functions(vendor, device)?.into_iter().next())
    }

    /// The PCI functions with these ids, in the order of their addresses.
    pub fn pci_functions(&self, vendor: u16, device: u16) -> Result<Vec<PciFunction>, GuestError> {
        let ids = [vendor.to_le_bytes(), device.to_le_bytes()].concat();
        self.select_pci_functions(|function| Ok(function.read_config(0, 4)? == ids))
    }

    /// The PCI bridge that leads to a bus: that with this bus for its secondary one.
    pub fn pci_bridge_to(&self, bus: u8) -> Result<Option<PciFunction>, GuestError> {
        const HEADER_TYPE: usize = 0x0e;
        const SECONDARY_BUS: usize = 0x19;
        let bridges = self.select_pci_functions(|function| {
            let header = function.read_config(0, 0x40)?;
            Ok(header[HEADER_TYPE] & 0x7f == 1 && header[SECONDARY_BUS] == bus)
        })?;
        Ok(bridges.into_iter().next())
    }

    fn select_pci_functions(
        &self,
        mut is_wanted: impl FnMut(&PciFunction) -> Result<bool, GuestError>,
    ) -> Result<Vec<PciFunction>, GuestError> {
        let mut selected = Vec::new();
        for name in self.list_directory(&format!("{BUS}/devices"))? {
            let Ok(address) = name.parse() else { continue };
            let function = self.pci_function_at(address);
            if is_wanted(&function)? {
                selected.push(function);
            }
        }
        Ok(selected)
    }

    /// The PCI function at an address, whether or not there is one.
    pub fn pci_function_at(&self, address: PciAddress) -> PciFunction {
        PciFunction { helper: self.helper.clone(), address }
    }

    /// Looks for functions that are new, on every bus.
    pub fn rescan_pci(&self) -> Result<(), GuestError> {
        self.write_file(&format!("{BUS}/rescan"), "1").map(drop)
    }
}

impl PciFunction {
    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// One of its files in sysfs.
    pub fn file(&self, name: &str) -> String {
        format!("{BUS}/devices/{}/{name}", self.address)
    }

    /// Whether it has a file in sysfs.
    pub fn has_file(&self, name: &str) -> Result<bool, GuestError> {
        Ok(self.helper.list_directory(&self.file(""))?.iter().any(|file| file == name))
    }

    /// Its file in procfs.
    pub fn procfs_file(&self) -> String {
        let PciAddress { bus, device, function } = self.address;
        format!("/proc/bus/pci/{bus:02x}/{device:02x}.{function}")
    }

    /// The guest physical addresses of a BAR, if it has it.
    pub fn bar(&self, index: usize) -> Result<Option<Range<u64>>, GuestError> {
        let text = self.helper.read_file(&self.file("resource"))?;
        let text = String::from_utf8_lossy(&text);
        parse_resource(text.lines().nth(index).unwrap_or_default()).ok_or_else(|| {
            GuestError::Unparsed { path: "the file resource of a PCI function", line: text.into() }
        })
    }

    /// Bytes of its configuration space.
    pub fn read_config(&self, offset: u64, length: u32) -> Result<Vec<u8>, GuestError> {
        let file = self.helper.open(&self.file("config"), OpenFlags::RDONLY)?;
        let bytes = file.read_at(offset, length)?;
        file.close()?;
        Ok(bytes)
    }

    /// Writes to its configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), GuestError> {
        let file = self.helper.open(&self.file("config"), OpenFlags::RDWR)?;
        file.write_at(offset, data)?;
        file.close()
    }

    /// Has its memory BARs decoded, as a driver would.
    pub fn decode_memory(&self) -> Result<(), GuestError> {
        self.set_command(self.command()? | command_register::MEMORY)
    }

    /// Lets it be bus master, as a driver would: without that it does no DMA.
    pub fn enable_bus_master(&self) -> Result<(), GuestError> {
        self.set_command(self.command()? | command_register::BUS_MASTER)
    }

    /// The command register.
    pub fn command(&self) -> Result<u16, GuestError> {
        self.read_config_u16(command_register::OFFSET)
    }

    /// The status register.
    pub fn status(&self) -> Result<u16, GuestError> {
        self.read_config_u16(status_register::OFFSET)
    }

    fn read_config_u16(&self, offset: u64) -> Result<u16, GuestError> {
        let bytes = self.read_config(offset, 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Writes the command register.
    pub fn set_command(&self, command: u16) -> Result<(), GuestError> {
        self.write_config(command_register::OFFSET, &command.to_le_bytes())
    }

    /// Whether it has Access Control Services: PCI Express 6.0, 7.7.11.
    pub fn has_access_control(&self) -> Result<bool, GuestError> {
        const EXTENDED: u16 = 0x100;
        const ACCESS_CONTROL: u16 = 0x000d;
        let config = self.read_config(0, 4096)?;
        let word = |offset: u16| {
            let bytes = config.get(usize::from(offset)..usize::from(offset) + 4)?;
            bytes.try_into().ok().map(u32::from_le_bytes)
        };
        let mut offset = EXTENDED;
        while let Some(header) = word(offset).filter(|&header| header != 0) {
            let next = (header >> 20) as u16;
            if header as u16 == ACCESS_CONTROL {
                return Ok(true);
            }
            if next <= offset {
                break;
            }
            offset = next;
        }
        Ok(false)
    }

    /// Binds it to a driver that is loaded, whatever other functions that driver is for.
    pub fn bind(&self, driver: &str) -> Result<(), GuestError> {
        self.set_driver_override(driver)?;
        let bound = self
            .helper
            .write_file(&format!("{BUS}/drivers/{driver}/bind"), self.address.to_string());
        self.clear_driver_override()?;
        bound.map(drop)
    }

    /// From now on only this driver matches it, loaded already or later: sysfs's driver_override.
    pub fn set_driver_override(&self, driver: &str) -> Result<(), GuestError> {
        self.helper.write_file(&self.file("driver_override"), driver).map(drop)
    }

    /// From now on the drivers match it that have its ids in their tables.
    pub fn clear_driver_override(&self) -> Result<(), GuestError> {
        self.helper.write_file(&self.file("driver_override"), "\n").map(drop)
    }

    /// Has the loaded drivers probe it. That none binds is not an error; EINVAL if one is refused.
    pub fn probe_drivers(&self) -> Result<(), GuestError> {
        self.helper.write_file(&format!("{BUS}/drivers_probe"), self.address.to_string()).map(drop)
    }

    /// Whether it has a driver.
    pub fn is_bound(&self) -> Result<bool, GuestError> {
        self.has_file("driver")
    }

    /// The members of its IOMMU group, itself included; none if it is in no group.
    pub fn group_members(&self) -> Result<Vec<PciAddress>, GuestError> {
        if !self.has_file("iommu_group")? {
            return Ok(Vec::new());
        }
        let members = self.helper.list_directory(&self.file("iommu_group/devices"))?;
        Ok(members.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Unbinds it from its driver, if it has one.
    pub fn unbind(&self) -> Result<(), GuestError> {
        let unbound = self.helper.write_file(&self.file("driver/unbind"), self.address.to_string());
        match unbound.outcome()? {
            Outcome::Denied(denial) if denial == Errno::ENOENT.into() => Ok(()),
            Outcome::Value(_) => Ok(()),
            Outcome::Denied(denial) => {
                Err(GuestError::Denied { asked: format!("unbind {}", self.address), denial })
            }
        }
    }

    /// The name of its group under /dev/vfio, while it is bound to vfio-pci.
    pub fn vfio_group(&self) -> Result<String, GuestError> {
        const GROUPS: &str = "/sys/kernel/iommu_groups";
        let address = self.address.to_string();
        let groups = self.helper.list_directory("/dev/vfio")?;
        for group in groups {
            let number = group.trim_start_matches("noiommu-");
            let members = self.helper.list_directory(&format!("{GROUPS}/{number}/devices"));
            if let Outcome::Value(members) = members.outcome()?
                && members.contains(&address)
            {
                return Ok(group);
            }
        }
        let asked = format!("find the VFIO group of {address}");
        Err(GuestError::Denied { asked, denial: Errno::ENODEV.into() })
    }

    /// The name of its own file under /dev/vfio/devices, while it is bound to vfio-pci.
    pub fn vfio_device(&self) -> Result<String, GuestError> {
        let names = self.helper.list_directory(&self.file("vfio-dev"))?;
        names.into_iter().next().ok_or_else(|| GuestError::Denied {
            asked: format!("find the VFIO device of {}", self.address),
            denial: Errno::ENODEV.into(),
        })
    }

    /// Has the kernel forget it, until the next rescan.
    pub fn remove(&self) -> Result<(), GuestError> {
        self.helper.write_file(&self.file("remove"), "1").map(drop)
    }
}

/// `START END FLAGS`, in hexadecimal; all zeros where there is no BAR.
fn parse_resource(line: &str) -> Option<Option<Range<u64>>> {
    let mut numbers =
        line.split_whitespace().map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let (start, end) = (numbers.next()??, numbers.next()??);
    Some((end != 0).then_some(start..end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        let address = PciAddress { bus: 0, device: 0x1f, function: 3 };
        assert_eq!(address.to_string(), "0000:00:1f.3");
        assert_eq!("0000:00:1f.3".parse(), Ok(address));
        for text in ["", "0001:00:1f.3", "0000:00:1f", "0000:00:xx.0"] {
            assert_eq!(text.parse::<PciAddress>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_resource_of_zeros_is_no_bar() {
        let line = "0x00000000febd4000 0x00000000febd7fff 0x000000000014220c";
        assert_eq!(parse_resource(line), Some(Some(0xfebd_4000..0xfebd_8000)));
        let line = "0x0000000000000000 0x0000000000000000 0x0000000000000000";
        assert_eq!(parse_resource(line), Some(None));
        assert_eq!(parse_resource("nonsense"), None);
    }
}
