//! Loads a kernel, its initramfs and its command line into memory, by the Linux 64-bit boot
//! protocol (Documentation/arch/x86/boot.rst) or PVH (Xen's docs/misc/pvh.pandoc).

mod image;
mod release;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use devices::pci::Ecam;
use devices::platform::PowerRegisters;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::configurator::{linux::LinuxBootConfigurator, pvh::PvhBootConfigurator};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult, bootparam};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::x86_64::layout::{self, port};
use crate::files;
use image::{Image, ImageFormat};
pub use release::kernel_release;

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// PVH for a vmlinux that has a PVH entry, otherwise the Linux 64-bit protocol.
    #[default]
    Auto,
    /// The Linux 64-bit boot protocol.
    Linux64,
    /// PVH; only for a vmlinux.
    Pvh,
}

/// Why a kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The file is not a kernel for this machine.
    #[error("{} {reason}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The loader cannot load it.
    #[error("cannot load {}: {reason}; is it truncated, or memory too small?", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's error.
        reason: String,
    },
    /// PVH was requested, and the kernel has no PVH entry point.
    #[error("{} has no PVH entry point; only a vmlinux built with CONFIG_PVH has one", path.display())]
    NoPvhEntry {
        /// The file.
        path: PathBuf,
    },
    /// The PVH entry point is outside of all segments.
    #[error("{} is a damaged ELF file: its PVH entry point {entry:#x} is in no segment", path.display())]
    PvhEntryOutsideSegments {
        /// The file.
        path: PathBuf,
        /// The address.
        entry: u64,
    },
    /// The kernel needs more memory to unpack itself.
    #[error(
        "the kernel needs memory up to {needed:#x}, but RAM ends at {available:#x}; give it more with --memory"
    )]
    KernelDoesNotFit {
        /// First address beyond what it needs.
        needed: u64,
        /// First address beyond RAM.
        available: u64,
    },
    /// The initramfs does not fit beside the kernel.
    #[error(
        "an initramfs of {size} bytes does not fit between the kernel, which ends at {kernel_end:#x}, and {limit:#x}; give the machine more memory"
    )]
    InitrdDoesNotFit {
        /// Its size in bytes.
        size: u64,
        /// Where the kernel ends, unpacked.
        kernel_end: u64,
        /// Where memory, or what the kernel can address, ends.
        limit: u64,
    },
    /// The command line is too long.
    #[error("the command line has {length} bytes; this kernel takes {maximum}")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// The longest that fits.
        maximum: usize,
    },
    /// The command line cannot be a C string.
    #[error("the command line contains a NUL byte")]
    CommandLineNul,
    /// A boot structure does not fit memory.
    #[error("cannot write boot structures to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The same, reported by the loader.
    #[error("cannot write boot parameters to guest memory: {0}")]
    Configurator(#[from] linux_loader::configurator::Error),
}

impl BootError {
    /// `path` cannot be read.
    pub fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.into(), source }
    }
}

/// Where the boot vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its first instruction.
    pub address: GuestAddress,
    /// The state it starts in.
    pub mode: EntryMode,
}

/// The state in which a kernel has to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMode {
    /// Long mode, with the zero page in RSI.
    Linux64 {
        /// Where it is.
        zero_page: GuestAddress,
    },
    /// 32-bit protected mode, with the start info in EBX.
    Pvh {
        /// Where it is.
        start_info: GuestAddress,
    },
}

/// A kernel image.
#[derive(Debug)]
pub struct KernelFile {
    path: PathBuf,
    file: File,
}

impl KernelFile {
    /// The image at `path`.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let file = files::open_regular(path).map_err(|source| BootError::read(path, source))?;
        Ok(Self { path: path.into(), file })
    }
}

/// What to boot.
pub struct BootSource<'a> {
    /// The kernel image.
    pub kernel: &'a KernelFile,
    /// How to enter it.
    pub protocol: BootProtocol,
    /// The initramfs; empty for none.
    pub initrd: &'a [u8],
    /// The command line.
    pub cmdline: &'a str,
}

/// A range of guest memory, with its e820 type.
struct MapEntry {
    start: u64,
    size: u64,
    kind: u32,
}

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Loads `source` into `memory`, which is RAM as of [`layout::ram_ranges`] for `ram_bytes`.
pub fn load(
    source: &BootSource<'_>,
    memory: &GuestMemoryMmap,
    ram_bytes: u64,
) -> Result<Entry, BootError> {
    let KernelFile { path, file } = source.kernel;
    let mut file = file.try_clone().map_err(|source| BootError::read(path, source))?;
    let image = image::inspect(path, &file)?;
    let low_end = ram_bytes.min(layout::MMIO_GAP_START.0);
    if image.end() > low_end {
        return Err(BootError::KernelDoesNotFit { needed: image.end(), available: low_end });
    }
    let loaded = load_image(path, &mut file, &image, memory)?;
    let header = loaded.setup_header.unwrap_or_default();
    let initrd = load_initrd(source.initrd, memory, image.end(), initrd_limit(&header, low_end))?;
    load_command_line(source.cmdline, memory, &header)?;
    write_reset_vector(memory)?;
    let map = memory_map(ram_bytes);
    match (source.protocol, loaded.pvh_boot_cap) {
        (BootProtocol::Auto | BootProtocol::Pvh, PvhBootCapability::PvhEntryPresent(address)) => {
            if !image.is_loaded(address.0) {
                return Err(BootError::PvhEntryOutsideSegments {
                    path: path.into(),
                    entry: address.0,
                });
            }
            write_start_info(memory, &map, initrd)?;
            Ok(Entry { address, mode: EntryMode::Pvh { start_info: layout::PVH_START_INFO } })
        }
        (BootProtocol::Pvh, _) => Err(BootError::NoPvhEntry { path: path.into() }),
        (BootProtocol::Auto | BootProtocol::Linux64, _) => {
            // The 64-bit entry of a bzImage is at offset 512; that of a vmlinux is in its header.
            let offset = if image.format == ImageFormat::BzImage { 0x200 } else { 0 };
            write_zero_page(memory, &map, header, source.cmdline.len(), initrd)?;
            let address = GuestAddress(loaded.kernel_load.0 + offset);
            Ok(Entry { address, mode: EntryMode::Linux64 { zero_page: layout::ZERO_PAGE } })
        }
    }
}

fn load_image(
    path: &Path,
    file: &mut File,
    image: &Image,
    memory: &GuestMemoryMmap,
) -> Result<KernelLoaderResult, BootError> {
    let lowest = Some(layout::HIGH_MEMORY_START);
    let loaded = match image.format {
        ImageFormat::BzImage => {
            BzImage::load(memory, Some(GuestAddress(image.start())), file, lowest)
        }
        ImageFormat::Elf => Elf::load(memory, None, file, lowest),
    };
    loaded.map_err(|error| BootError::Load { path: path.into(), reason: error.to_string() })
}

fn initrd_limit(header: &bootparam::setup_header, low_end: u64) -> u64 {
    let addressable = match header.initrd_addr_max {
        0 => u64::MAX,
        last => u64::from(last) + 1,
    };
    low_end.min(addressable)
}

/// Loads the initramfs as high as possible. Returns its address and size.
fn load_initrd(
    initrd: &[u8],
    memory: &GuestMemoryMmap,
    kernel_end: u64,
    limit: u64,
) -> Result<Option<(GuestAddress, u64)>, BootError> {
    const PAGE: u64 = 4096;
    let size = initrd.len() as u64;
    if size == 0 {
        return Ok(None);
    }
    let start = limit.checked_sub(size).map(|start| start / PAGE * PAGE);
    match start {
        Some(start) if start >= kernel_end => {
            memory.write_slice(initrd, GuestAddress(start))?;
            Ok(Some((GuestAddress(start), size)))
        }
        _ => Err(BootError::InitrdDoesNotFit { size, kernel_end, limit }),
    }
}

fn load_command_line(
    cmdline: &str,
    memory: &GuestMemoryMmap,
    header: &bootparam::setup_header,
) -> Result<(), BootError> {
    // Linux's limit if no header has one: COMMAND_LINE_SIZE - 1.
    const WITHOUT_A_HEADER: usize = 2047;
    let maximum = match header.cmdline_size {
        0 => WITHOUT_A_HEADER,
        size => size as usize,
    };
    if cmdline.len() > maximum {
        return Err(BootError::CommandLineTooLong { length: cmdline.len(), maximum });
    }
    if cmdline.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    memory.write_slice(cmdline.as_bytes(), layout::COMMAND_LINE)?;
    memory.write_obj(0_u8, GuestAddress(layout::COMMAND_LINE.0 + cmdline.len() as u64))?;
    Ok(())
}

/// Writes code that resets the machine to the address where a processor starts after a reset. There is no
/// firmware, but Linux jumps there to reboot: with hardware-reduced ACPI it tries EFI first and the BIOS
/// next, never ACPI's own reset register (`reboot_init`, arch/x86/kernel/reboot.c, 6.1 and 6.12).
fn write_reset_vector(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    let [port_low, port_high] = (port::POWER + PowerRegisters::RESET).to_le_bytes();
    const MOV_DX: u8 = 0xba;
    const MOV_AL: u8 = 0xb0;
    const OUT_DX_AL: u8 = 0xee;
    const HLT: u8 = 0xf4;
    let value = PowerRegisters::RESET_VALUE;
    let code = [MOV_DX, port_low, port_high, MOV_AL, value, OUT_DX_AL, HLT];
    Ok(memory.write_slice(&code, layout::RESET_VECTOR)?)
}

fn memory_map(ram_bytes: u64) -> Vec<MapEntry> {
    let bios = layout::ACPI_TABLES.0..layout::HIGH_MEMORY_START.0;
    let mut map = vec![
        MapEntry { start: 0, size: layout::LOW_MEMORY_END.0, kind: E820_RAM },
        MapEntry { start: bios.start, size: bios.end - bios.start, kind: E820_RESERVED },
        // Early in its boot Linux trusts MCFG only if e820 reserves the ECAM. Without PCI it does no harm.
        MapEntry { start: layout::PCI_ECAM.0, size: Ecam::SIZE, kind: E820_RESERVED },
    ];
    for (start, size) in layout::ram_ranges(ram_bytes) {
        let usable = start.0.max(layout::HIGH_MEMORY_START.0);
        map.push(MapEntry { start: usable, size: start.0 + size - usable, kind: E820_RAM });
    }
    map
}

fn write_zero_page(
    memory: &GuestMemoryMmap,
    map: &[MapEntry],
    header: bootparam::setup_header,
    cmdline_length: usize,
    initrd: Option<(GuestAddress, u64)>,
) -> Result<(), BootError> {
    const UNKNOWN_LOADER: u8 = 0xff;
    let mut params = bootparam::boot_params { hdr: header, ..Default::default() };
    // A vmlinux has no setup header, but Linux requires these fields.
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
    params.hdr.cmdline_size = cmdline_length as u32;
    if let Some((start, size)) = initrd {
        params.hdr.ramdisk_image = start.0 as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = layout::ACPI_TABLES.0;
    for (entry, MapEntry { start, size, kind }) in params.e820_table.iter_mut().zip(map) {
        *entry = bootparam::boot_e820_entry { addr: *start, size: *size, r#type: *kind };
    }
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, layout::ZERO_PAGE);
    Ok(LinuxBootConfigurator::write_bootparams(&params, memory)?)
}

fn write_start_info(
    memory: &GuestMemoryMmap,
    map: &[MapEntry],
    initrd: Option<(GuestAddress, u64)>,
) -> Result<(), BootError> {
    const MAGIC: u32 = 0x336e_c578;
    let modules: Vec<hvm_modlist_entry> = initrd
        .iter()
        .map(|(start, size)| hvm_modlist_entry {
            paddr: start.0,
            size: *size,
            ..Default::default()
        })
        .collect();
    let entries: Vec<hvm_memmap_table_entry> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind,
            reserved: 0,
        })
        .collect();
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: layout::PVH_MODULES.0,
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: layout::ACPI_TABLES.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: entries.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, layout::PVH_START_INFO);
    params.set_sections(&entries, layout::PVH_MEMORY_MAP);
    if !modules.is_empty() {
        params.set_modules(&modules, layout::PVH_MODULES);
    }
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}
