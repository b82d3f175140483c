//! What a machine consists of, as data that both the command line and JSON can spell.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::probe::ProbeConfig;
use crate::arch::x86_64::boot::BootProtocol;
use crate::board::memory_device::{Enforcement, MemoryDeviceConfig};
use crate::memory::host::HostMemoryConfig;
use crate::size::Size;

/// How drivers reach virtio devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VirtioTransport {
    /// virtio-mmio; ACPI describes where the registers are.
    #[default]
    Mmio,
    /// virtio-pci, a function each on bus 0.
    Pci,
}

/// The kinds of IOMMU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IommuKind {
    /// virtio-iommu.
    #[default]
    Virtio,
}

/// An IOMMU, with every device behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IommuConfig {
    /// Its kind: only virtio-iommu so far.
    pub kind: IommuKind,
    /// Whether devices reach memory by guest addresses until a driver of the IOMMU attaches them to a
    /// domain, which a kernel without such a driver needs.
    #[serde(default = "on")]
    pub bypass: bool,
}

impl Default for IommuConfig {
    fn default() -> Self {
        Self { kind: IommuKind::default(), bypass: on() }
    }
}

fn on() -> bool {
    true
}

/// What happens when the guest resets the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// The machine ends.
    #[default]
    End,
    /// The machine starts again: nothing is plugged, and the kernel and the initramfs are loaded anew.
    ///
    /// All is as it was at first but the sizes requested of its memory devices. A triple fault counts
    /// as a reset, as it does on a PC.
    Restart,
}

/// A machine. Its fields are named like the options of `moat run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// The kernel image, a bzImage or an ELF vmlinux.
    pub kernel: PathBuf,
    /// The initramfs, if it has one.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; see [`Self::command_line`] for what it is if this is none.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Where the names of the kernel's functions are: a System.map, a copy of /proc/kallsyms, or a
    /// vmlinux. None to find them in the guest's memory.
    #[serde(default)]
    pub symbols: Option<PathBuf>,
    /// Number of vCPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Bytes of RAM.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// How its RAM is allocated from the host.
    #[serde(default)]
    pub memory_backing: HostMemoryConfig,
    /// Its virtio-mem devices, `mem0` first.
    #[serde(default)]
    pub virtio_mem: Vec<MemoryDeviceConfig>,
    /// How drivers reach virtio devices.
    #[serde(default)]
    pub transport: VirtioTransport,
    /// Its probe devices. Without any, and with virtio over MMIO, the machine has no PCI.
    #[serde(default)]
    pub probe: Vec<ProbeConfig>,
    /// Its IOMMU, if it has one.
    #[serde(default)]
    pub iommu: Option<IommuConfig>,
    /// Whether unplugged memory is out of the guest's reach.
    #[serde(default)]
    pub enforce: Enforcement,
    /// What happens when the guest resets the machine.
    #[serde(default)]
    pub on_reset: OnReset,
    /// How to enter the kernel.
    #[serde(default)]
    pub boot_protocol: BootProtocol,
}

fn one() -> u32 {
    1
}

fn default_memory() -> Size {
    Size(512 << 20)
}

impl MachineSpec {
    /// The least RAM that a kernel can be loaded into.
    pub const MINIMUM_MEMORY: u64 = 16 << 20;

    /// A machine that boots `kernel`, with defaults for everything else.
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            kernel,
            initrd: None,
            cmdline: None,
            symbols: None,
            cpus: one(),
            memory: default_memory(),
            memory_backing: HostMemoryConfig::default(),
            virtio_mem: Vec::new(),
            transport: VirtioTransport::default(),
            probe: Vec::new(),
            iommu: None,
            enforce: Enforcement::default(),
            on_reset: OnReset::default(),
            boot_protocol: BootProtocol::default(),
        }
    }

    /// Whether the machine has PCI.
    pub fn has_pci(&self) -> bool {
        self.transport == VirtioTransport::Pci || !self.probe.is_empty()
    }

    /// The kernel's command line: the one specified, or else [`Self::DEFAULT_COMMAND_LINE`], with `pci=off` where
    /// the machine has no PCI: otherwise Linux would search I/O ports for it.
    pub fn command_line(&self) -> String {
        match &self.cmdline {
            Some(cmdline) => cmdline.clone(),
            None if self.has_pci() => Self::DEFAULT_COMMAND_LINE.to_owned(),
            None => format!("{} pci=off", Self::DEFAULT_COMMAND_LINE),
        }
    }

    /// Puts the console on ttyS0, reboots after a panic, and has no bounce buffers: Linux would allocate and clear
    /// 64 MiB for them where memory above 4 GiB may be plugged, and moat's devices reach all memory.
    pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 panic=-1 swiotlb=noforce";
}
