//! PCI as part of a machine: interrupts and doorbells through KVM, and the record of accesses that no
//! function decoded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use devices::Signal;

use devices::pci::{
    Access, Counters, Doorbell, Function, FunctionAddress, FunctionStatus, InterruptLine, Message,
    MessageSink, Node, PowerState, Refusal, RootComplex, RootNode, RootPort, Slot, Topology,
};
use kvm_bindings::kvm_msi;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use log::{debug, error, warn};
use serde::{Deserialize, Serialize};

use super::worker::EventSignal;
use crate::arch::x86_64::layout;
use crate::firmware::acpi::PciHostBridge;
use crate::sync::lock;
use crate::violations::{
    Accessor, Consequence, GuestAccess, Offender, Target, ViolationCounters, ViolationLog,
    ViolationPolicy,
};

/// Where on PCI a device is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PciPlace {
    /// On bus 0, integrated into the root complex.
    #[default]
    RootComplex,
    /// Behind a root port of its own.
    RootPort {
        /// Whether the port has Access Control Services, without which Linux does not isolate the
        /// device from those behind other ports.
        access_control: bool,
    },
    /// Behind a bridge to conventional PCI that all such devices share, on a root port.
    ConventionalBridge,
}

/// The devices of a topology under construction, each with its functions in the order of their numbers.
#[derive(Default)]
pub struct PciDevices(Vec<(PciPlace, Vec<Function>)>);

impl PciDevices {
    /// The address of the device that is added first, if its place is bus 0.
    pub const FIRST: FunctionAddress = FunctionAddress::new(0, Slot::new(1, 0).unwrap());

    /// Adds a device.
    pub fn add(&mut self, place: PciPlace, functions: Vec<Function>) {
        self.0.push((place, functions));
    }

    /// Builds the topology. The shared bridge comes last.
    pub fn into_topology(self) -> Topology {
        let mut root = Vec::new();
        let mut conventional = Vec::new();
        for (place, functions) in self.0 {
            let device = Node::Device(functions);
            match place {
                PciPlace::RootComplex => root.push(RootNode::Integrated(device)),
                PciPlace::RootPort { access_control } => {
                    root.push(RootNode::Port(RootPort { access_control, below: Some(device) }));
                }
                PciPlace::ConventionalBridge => conventional.push(device),
            }
        }
        if !conventional.is_empty() {
            let below = Some(Node::ConventionalBridge(conventional));
            root.push(RootNode::Port(RootPort { access_control: false, below }));
        }
        Topology { root }
    }
}

/// All of PCI in a machine.
pub struct Pci {
    root: Arc<RootComplex>,
    names: BTreeMap<FunctionAddress, String>,
    violations: ViolationLog,
}

/// PCI as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciStatus {
    /// Its functions, in the order of their addresses when the machine started.
    pub functions: Vec<PciFunctionStatus>,
    /// Accesses to address ranges that belong to a function but that it did not decode.
    pub violations: ViolationCounters,
    /// The instructions that made the latest of them, latest last.
    pub offenders: Vec<Offender>,
}

/// A function as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunctionStatus {
    /// Its name, such as `probe0`; bridges have none.
    pub name: Option<String>,
    /// Bus, device and function, such as `00:02.0`.
    pub address: String,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// The command register.
    pub command: u16,
    /// Whether it is in D3hot.
    pub asleep: bool,
    /// Its address ranges.
    pub ranges: Vec<PciRangeStatus>,
    /// Its event counters.
    pub counters: Counters,
}

/// An address range as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciRangeStatus {
    /// The register that holds its address, such as `BAR 0`.
    pub register: String,
    /// First address; 0 if the guest has given it none.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Whether the function decodes it.
    pub enabled: bool,
}

impl Pci {
    /// Everything below `root`.
    pub fn new(root: Arc<RootComplex>) -> Self {
        let name = |function: FunctionStatus| Some((function.address, function.name?));
        let names = root.status().into_iter().filter_map(name).collect();
        Self { root, names, violations: ViolationLog::default() }
    }

    /// The root complex, through which every function is accessed.
    pub fn root(&self) -> &RootComplex {
        &self.root
    }

    /// `access` as a refused one, if a function refused it.
    pub fn refused(&self, access: GuestAccess, outcome: Access) -> Option<RefusedAccess<'_>> {
        match outcome {
            Access::Refused(refusal) => Some(RefusedAccess { pci: self, access, refusal }),
            Access::Claimed | Access::Unmapped => None,
        }
    }

    /// PCI as seen from outside.
    pub fn status(&self) -> PciStatus {
        PciStatus {
            functions: self.root.status().into_iter().map(PciFunctionStatus::from).collect(),
            violations: self.violations.counters(),
            offenders: self.violations.offenders(),
        }
    }
}

impl From<FunctionStatus> for PciFunctionStatus {
    fn from(function: FunctionStatus) -> Self {
        let ranges = function.ranges.into_iter().map(|range| PciRangeStatus {
            register: range.register.to_string(),
            address: range.address,
            size: range.size,
            enabled: range.enabled,
        });
        Self {
            name: function.name,
            address: function.address.to_string(),
            vendor: function.vendor,
            device: function.device,
            command: function.command.bits(),
            asleep: function.power_state == PowerState::D3hot,
            ranges: ranges.collect(),
            counters: function.counters,
        }
    }
}

/// An access of a vCPU that a function refused. A read has its data already.
pub struct RefusedAccess<'a> {
    pci: &'a Pci,
    access: GuestAccess,
    refusal: Refusal,
}

impl RefusedAccess<'_> {
    /// Counts and keeps the access. `accessor` finds out what made it.
    pub fn record(self, accessor: impl FnOnce(&GuestAccess) -> Accessor) -> Consequence {
        let Refusal { function, register, offset, reason, .. } = self.refusal;
        let (function, register) = (function.to_string(), register.to_string());
        let device = self.pci.names.get(&self.refusal.function).unwrap_or(&function);
        let target =
            Target::BaseAddressRange { function: function.clone(), register, offset, reason };
        let policy = ViolationPolicy::Report;
        self.pci.violations.record(policy, device, self.access, target, accessor)
    }
}

/// Message-signalled interrupts, delivered by KVM.
pub struct KvmMessages(pub Arc<VmFd>);

impl MessageSink for KvmMessages {
    fn send(&self, message: Message) {
        let Some(msi) = interrupt(message) else {
            debug!("{message:x?} is not an interrupt, and is dropped");
            return;
        };
        // A message to a processor that does not exist is lost, as on a real machine.
        if let Err(error) = self.0.signal_msi(msi) {
            debug!("KVM does not deliver {message:x?}: {error}");
        }
    }
}

/// The interrupt of `message`. None if its address is outside the MSI window: KVM ignores the upper bits
/// of the address, so they are checked here.
fn interrupt(message: Message) -> Option<kvm_msi> {
    let Message { address, data } = message;
    layout::MSI_WINDOW.contains(&address).then(|| kvm_msi {
        address_lo: address as u32,
        data,
        ..Default::default()
    })
}

/// A doorbell that KVM signals by an ioeventfd, without an exit, wherever the guest has mapped its
/// register. If that fails, the device signals it after an exit.
pub struct KvmDoorbell {
    signal: Arc<EventSignal>,
    vm: Arc<VmFd>,
    bridge: PciHostBridge,
    address: Mutex<Option<u64>>,
}

impl KvmDoorbell {
    /// A doorbell that triggers `signal`, at an address in the windows of `bridge`.
    pub fn new(signal: Arc<EventSignal>, vm: Arc<VmFd>, bridge: PciHostBridge) -> Self {
        Self { signal, vm, bridge, address: Mutex::default() }
    }
}

impl Signal for KvmDoorbell {
    fn signal(&self) {
        self.signal.signal();
    }
}

impl Doorbell for KvmDoorbell {
    fn moved(&self, address: Option<u64>) {
        let mut registered = lock(&self.address);
        if let Some(address) = registered.take() {
            let notify = IoEventAddress::Mmio(address);
            if let Err(error) = self.vm.unregister_ioevent(&self.signal.0, &notify, NoDatamatch) {
                error!("cannot remove the ioeventfd of the doorbell at {address:#x}: {error}");
            }
        }
        // Outside the windows other devices have priority, and an ioeventfd would bypass them.
        if let Some(address) = address.filter(|address| self.bridge.passes(*address)) {
            let notify = IoEventAddress::Mmio(address);
            match self.vm.register_ioevent(&self.signal.0, &notify, NoDatamatch) {
                Ok(()) => *registered = Some(address),
                Err(error) => {
                    warn!(
                        "no ioeventfd for the doorbell at {address:#x}, which is slower: {error}"
                    );
                }
            }
        }
    }
}

/// An input of KVM's I/O APIC, as a level-triggered line.
pub struct KvmLine {
    /// The virtual machine of the I/O APIC.
    pub vm: Arc<VmFd>,
    /// The number of the input.
    pub gsi: u32,
}

impl InterruptLine for KvmLine {
    fn set_level(&self, asserted: bool) {
        if let Err(error) = self.vm.set_irq_line(self.gsi, asserted) {
            debug!("cannot set the level of interrupt line {}: {error}", self.gsi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_to_the_msi_window_are_interrupts() {
        let interrupt = |address| interrupt(Message { address, data: 0x41 });
        for address in [0xfee0_0000, 0xfee0_1004, 0xfeef_fffc] {
            let msi = interrupt(address).unwrap();
            assert_eq!((msi.address_lo, msi.address_hi, msi.data), (address as u32, 0, 0x41));
        }
        for address in [0, 0x1000, 0xfedf_fffc, 0xfef0_0000, 0x1_fee0_0000] {
            assert!(interrupt(address).is_none(), "{address:#x}");
        }
    }
}
