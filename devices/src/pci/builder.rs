//! The description of a function, from which its registers are made.

use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::bar::BaseRange;
use super::capability::power::{self, SoftReset};
use super::capability::{AccessControl, CapabilityList, MsixCapability};
use super::completer::Completer;
use super::config_space::ConfigSpace;
use super::doorbell::DoorbellRegister;
use super::function::{DeviceBytes, MsixRegisters, RangeRegisters};
use super::header::{Command, HeaderType, register};
use super::{
    AddressSpace, BarIndex, BarKind, BaseRegister, Doorbell, Function, FunctionState, Identity,
    InterruptPin, IntxPin, MessageSink, Msix, MsixLayout, PciDevice, VendorCapability,
};

/// Why a function cannot be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FunctionError {
    /// A range has a size that is not valid for its kind.
    #[error(
        "invalid size {size:#x} of a {kind:?} range: expected a power of two from {min:#x} to {max:#x}"
    )]
    Size {
        /// The kind.
        kind: BarKind,
        /// The size asked for.
        size: u64,
        /// The smallest valid size.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// The register, or the one for the upper half of its address, is taken or does not exist.
    #[error("{0} is already in use, or has no register to hold the upper half of its address")]
    RegisterTaken(BaseRegister),
    /// The MSI-X structures are not in a memory BAR, overlap, are not aligned, or are too many.
    #[error(
        "invalid MSI-X layout {0:?}: expected one table of 1 to 2048 entries and its PBA, 8-byte aligned and disjoint, in one memory BAR"
    )]
    MsixLayout(MsixLayout),
    /// A doorbell is not in a memory BAR.
    #[error("invalid doorbell at {offset:#x} of BAR {}: expected an offset in a memory BAR", *bar as u8)]
    Doorbell {
        /// The BAR.
        bar: BarIndex,
        /// Bytes from its start.
        offset: u64,
    },
    /// There is no room for another capability.
    #[error("no room for another capability in configuration space")]
    CapabilitySpace,
}

/// Describes a function, and creates the parts that its device model needs.
///
/// Every function has power management (D0 and D3hot, and a reset on the way back) and, unless it
/// ends up on a conventional bus, a PCI Express capability with Function Level Reset.
pub struct FunctionBuilder {
    config: ConfigSpace,
    capabilities: CapabilityList,
    ranges: Vec<BaseRange>,
    msix: Option<(MsixRegisters, Arc<Msix>)>,
    device_bytes: Vec<DeviceBytes>,
    doorbell: Option<DoorbellRegister>,
    intx: Option<Arc<IntxPin>>,
    rom: Vec<u8>,
    state: Arc<FunctionState>,
}

impl FunctionBuilder {
    /// A function without address ranges or interrupts.
    pub fn new(identity: Identity) -> Self {
        let mut config = ConfigSpace::with_header(&identity, HeaderType::Endpoint);
        config.set(register::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.set(register::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        let mut capabilities = CapabilityList::new();
        power::add(&mut capabilities, &mut config, SoftReset::Yes);
        Self {
            config,
            capabilities,
            ranges: Vec::new(),
            msix: None,
            device_bytes: Vec::new(),
            doorbell: None,
            intx: None,
            rom: Vec::new(),
            state: Arc::default(),
        }
    }

    /// The function's state as its device model may query it.
    pub fn state(&self) -> Arc<FunctionState> {
        Arc::clone(&self.state)
    }

    /// Adds a range of `size` bytes.
    pub fn bar(&mut self, index: BarIndex, kind: BarKind, size: u64) -> Result<(), FunctionError> {
        let taken = FunctionError::RegisterTaken(BaseRegister::Bar(index));
        let upper = match (kind.is_64_bit(), index.next()) {
            (false, _) => index,
            (true, Some(upper)) => upper,
            (true, None) => return Err(taken),
        };
        if [index, upper].into_iter().any(|index| self.is_taken(index)) {
            return Err(taken);
        }
        let sizes = kind.sizes();
        if !size.is_power_of_two() || !sizes.contains(&size) {
            return Err(FunctionError::Size { kind, size, min: *sizes.start(), max: *sizes.end() });
        }
        self.add_range(BaseRange { register: BaseRegister::Bar(index), kind, size });
        Ok(())
    }

    fn is_taken(&self, index: BarIndex) -> bool {
        self.ranges.iter().any(|range| match range.register {
            BaseRegister::Bar(bar) => {
                bar == index || range.kind.is_64_bit() && bar.next() == Some(index)
            }
            BaseRegister::ExpansionRom => false,
        })
    }

    /// Bytes of memory in a BAR.
    fn memory_size(&self, index: BarIndex) -> u64 {
        self.ranges
            .iter()
            .find(|range| range.register == BaseRegister::Bar(index))
            .filter(|range| range.space() == AddressSpace::Memory)
            .map_or(0, |range| range.size)
    }

    fn add_range(&mut self, range: BaseRange) {
        range.add(&mut self.config);
        self.ranges.push(range);
    }

    /// Adds an expansion ROM with these contents, padded with zeros to a valid size.
    pub fn rom(&mut self, contents: Vec<u8>) -> Result<(), FunctionError> {
        let (register, kind) = (BaseRegister::ExpansionRom, BarKind::Memory32);
        if self.ranges.iter().any(|range| range.register == register) {
            return Err(FunctionError::RegisterTaken(register));
        }
        let (min, max) = BaseRange::ROM_SIZES.into_inner();
        let size = contents.len() as u64;
        if size > max {
            return Err(FunctionError::Size { kind, size, min, max });
        }
        self.rom = contents;
        self.add_range(BaseRange { register, kind, size: size.next_power_of_two().max(min) });
        Ok(())
    }

    /// Adds MSI-X. Its structures lie in a BAR added before, and the device model never sees
    /// accesses to them.
    pub fn msix(
        &mut self,
        layout: MsixLayout,
        sink: Arc<dyn MessageSink>,
    ) -> Result<Arc<Msix>, FunctionError> {
        if self.msix.is_some() || !layout.fits(self.memory_size(layout.bar)) {
            return Err(FunctionError::MsixLayout(layout));
        }
        let capability = MsixCapability::add(&mut self.capabilities, &mut self.config, &layout)
            .ok_or(FunctionError::CapabilitySpace)?;
        let msix = Arc::new(Msix::new(&layout, sink));
        self.msix = Some((MsixRegisters { capability, layout }, Arc::clone(&msix)));
        Ok(msix)
    }

    /// Declares that a write to the register at `offset` of a memory BAR added before does nothing but
    /// ring `doorbell`. It replaces one added before. A write that the machine does not serve by itself
    /// gets to the device model, which has to ring the doorbell.
    pub fn doorbell(
        &mut self,
        bar: BarIndex,
        offset: u64,
        doorbell: Arc<dyn Doorbell>,
    ) -> Result<(), FunctionError> {
        if offset >= self.memory_size(bar) {
            return Err(FunctionError::Doorbell { bar, offset });
        }
        self.doorbell = Some(DoorbellRegister { bar, offset, doorbell });
        Ok(())
    }

    /// Adds an interrupt pin, which replaces one added before.
    pub fn intx(&mut self, pin: InterruptPin) -> Arc<IntxPin> {
        self.config.set(register::INTERRUPT_PIN, &[pin as u8]);
        self.config.allow_command(Command::INTX_DISABLE);
        let intx = Arc::new(IntxPin::default());
        self.intx = Some(Arc::clone(&intx));
        intx
    }

    /// Adds a vendor-specific capability.
    pub fn vendor_capability(
        &mut self,
        capability: &VendorCapability,
    ) -> Result<(), FunctionError> {
        let place = capability
            .add(&mut self.capabilities, &mut self.config)
            .ok_or(FunctionError::CapabilitySpace)?;
        let own = &capability.device_bytes;
        if !own.is_empty() {
            let own = place.start + own.start..(place.start + own.end).min(place.end);
            self.device_bytes.push(DeviceBytes { capability: place, own });
        }
        Ok(())
    }

    /// Adds Access Control Services, without which Linux does not isolate a function from the
    /// others of its device.
    pub fn access_control(&mut self) {
        AccessControl::MULTI_FUNCTION.add(&mut self.config);
    }

    /// The function, with `device` to answer for its ranges and resets.
    pub fn build(self, device: Arc<Mutex<dyn PciDevice>>) -> Function {
        let (msix_registers, msix) = self.msix.unzip();
        let completer =
            Completer { state: self.state, device, msix, intx: self.intx, rom: self.rom };
        Function {
            config: self.config,
            capabilities: self.capabilities,
            ranges: self.ranges.into_iter().map(RangeRegisters::new).collect(),
            msix: msix_registers,
            device_bytes: self.device_bytes,
            doorbell: self.doorbell,
            completer: Arc::new(completer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_machine::{Bell, IDENTITY, MSIX, Messages};
    use super::*;

    #[test]
    fn ranges_are_powers_of_two_in_registers_of_their_own() {
        let mut builder = FunctionBuilder::new(IDENTITY);
        builder.bar(BarIndex::Bar1, BarKind::Memory64, 0x1000).unwrap();
        let taken = |index| Err(FunctionError::RegisterTaken(BaseRegister::Bar(index)));
        for index in [BarIndex::Bar1, BarIndex::Bar2] {
            assert_eq!(builder.bar(index, BarKind::Io, 4), taken(index));
        }
        for index in [BarIndex::Bar0, BarIndex::Bar5] {
            assert_eq!(builder.bar(index, BarKind::Memory64, 0x1000), taken(index));
        }
        for (kind, sizes) in [
            (BarKind::Memory32, [0, 8, 0x1001, 1 << 32]),
            (BarKind::Memory64, [0, 1, 0x3000, u64::MAX]),
            (BarKind::Io, [0, 2, 12, 512]),
        ] {
            for size in sizes {
                let result = builder.bar(BarIndex::Bar3, kind, size);
                assert!(matches!(result, Err(FunctionError::Size { .. })), "{kind:?} {size:#x}");
            }
        }
        builder.bar(BarIndex::Bar5, BarKind::Memory32, 1 << 31).unwrap();
        assert!(matches!(builder.rom(vec![0; (1 << 24) + 1]), Err(FunctionError::Size { .. })));
        builder.rom(vec![0; 0x1001]).unwrap();
        assert_eq!(
            builder.rom(Vec::new()),
            Err(FunctionError::RegisterTaken(BaseRegister::ExpansionRom))
        );
    }

    #[test]
    fn msix_fits_into_a_memory_bar() {
        let mut builder = FunctionBuilder::new(IDENTITY);
        builder.bar(BarIndex::Bar0, BarKind::Memory64, 0x4000).unwrap();
        builder.bar(BarIndex::Bar2, BarKind::Io, 256).unwrap();
        let sink = Arc::new(Messages::default());
        for layout in [
            MsixLayout { vectors: 0, ..MSIX },
            MsixLayout { vectors: 2049, table: 0, ..MSIX },
            MsixLayout { bar: BarIndex::Bar1, ..MSIX },
            MsixLayout { bar: BarIndex::Bar2, vectors: 1, table: 0, pending: 16 },
            MsixLayout { table: 4, ..MSIX },
            MsixLayout { table: 0x3ff8, ..MSIX },
            MsixLayout { pending: u32::MAX - 7, ..MSIX },
            MsixLayout { pending: MSIX.table + 40, ..MSIX },
        ] {
            let result = builder.msix(layout, Arc::clone(&sink) as _).map(|_| ());
            assert_eq!(result, Err(FunctionError::MsixLayout(layout)));
        }
        assert_eq!(builder.msix(MSIX, Arc::clone(&sink) as _).unwrap().vectors(), 3);
        assert!(builder.msix(MSIX, sink).is_err(), "once is enough");
    }

    #[test]
    fn a_doorbell_is_in_a_memory_bar() {
        let mut builder = FunctionBuilder::new(IDENTITY);
        builder.bar(BarIndex::Bar0, BarKind::Memory32, 0x1000).unwrap();
        builder.bar(BarIndex::Bar1, BarKind::Io, 256).unwrap();
        let mut add = |bar, offset| builder.doorbell(bar, offset, Arc::new(Bell::default()));
        add(BarIndex::Bar0, 0xfff).unwrap();
        for (bar, offset) in [(BarIndex::Bar0, 0x1000), (BarIndex::Bar1, 0), (BarIndex::Bar2, 0)] {
            assert_eq!(add(bar, offset), Err(FunctionError::Doorbell { bar, offset }));
        }
    }

    #[test]
    fn capabilities_are_added_while_there_is_room() {
        let mut builder = FunctionBuilder::new(IDENTITY);
        let mut add = |size| builder.vendor_capability(&VendorCapability::read_only(vec![0; size]));
        // virtio's five, and one more.
        for size in [16, 20, 16, 16, 20, 24] {
            add(size).unwrap();
        }
        for size in [16, 256, 100_000] {
            assert_eq!(add(size), Err(FunctionError::CapabilitySpace));
        }
        add(0).unwrap();
    }
}
