//! A crash kernel dumps the memory of the kernel before it: what was plugged, and nothing else.

mod support;

use std::fs;
use std::time::Duration;

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use support::MIB;
use support::linux::{kernel, machine};
use testvm::guest::{File, OpenFlags};
use testvm::initramfs::Initramfs;
use testvm::vm::{BUS, DRIVER, Vm, VmConfig};
use vmm::{MemoryDeviceConfig, Size, VirtioTransport};

const BLOCK: u64 = 2 * MIB;
/// One of Linux's memory blocks, and a part of the next.
const PLUGGED: u64 = 200 * MIB;
const ADDED: u64 = 256 * MIB;

/// The ranges of physical memory in /proc/vmcore.
struct Dump {
    file: File,
    /// Physical address, length, and offset in the file.
    segments: Vec<(u64, u64, u64)>,
}

impl Dump {
    fn open(file: File) -> Self {
        // The headers come first, each of 56 bytes, and there is one for each range of memory.
        let headers = file.read_at(0, 4096).unwrap();
        let header = FileHeader64::<Endianness>::parse(&*headers).unwrap();
        let endian = header.endian().unwrap();
        let segments = header.program_headers(endian, &*headers).unwrap().iter();
        let segments = segments
            .filter(|segment| segment.p_type(endian) == PT_LOAD)
            .map(|s| (s.p_paddr(endian), s.p_memsz(endian), s.p_offset(endian)))
            .collect();
        Self { file, segments }
    }

    /// Where physical memory is in the file, if it is there.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let (start, _, offset) = self
            .segments
            .iter()
            .find(|(start, size, _)| (*start..start + size).contains(&address))?;
        Some(offset + (address - start))
    }
}

#[test]
fn l8_a_crash_kernel_dumps_plugged_memory_only() {
    const TIMEOUT: Duration = Duration::from_secs(120);
    const SEED: u64 = 0x6475_6d70;
    let kernel = kernel("protected");
    let modules = || kernel.modules(&[BUS, DRIVER]).unwrap();
    let initramfs = Initramfs::new()
        .with_modules(modules())
        .with_file("crash-kernel", fs::read(kernel.image()).unwrap())
        .with_file("crash-initramfs", Initramfs::new().with_modules(modules()).build());
    let requested = PLUGGED;
    let mut vm = Vm::boot(&VmConfig {
        initrd: initramfs.build(),
        parameters: "crashkernel=128M memhp_default_state=online_movable".to_owned(),
        virtio_transport: VirtioTransport::Pci,
        memory_devices: vec![MemoryDeviceConfig {
            requested: Size(requested),
            ..MemoryDeviceConfig::new(1024 * MIB)
        }],
        ..machine(&kernel, &[])
    })
    .unwrap_or_else(|trouble| panic!("{trouble}\n{}", trouble.console));
    vm.load_driver().unwrap();
    let held = vm.guest.spawn().unwrap().allocate(PLUGGED).unwrap();
    held.fill(SEED).unwrap();
    let command_line = "console=ttyS0 nr_cpus=1";
    vm.guest.load_crash_kernel("/crash-kernel", "/crash-initramfs", command_line).unwrap();
    let requests = vm.counters().unwrap().requests;

    vm.guest.crash().unwrap();
    vm.guest.wait_to_restart(TIMEOUT).unwrap();
    assert_eq!(vm.device().unwrap().plugged, PLUGGED, "a crash unplugs nothing");
    let process = vm.guest.spawn().unwrap();
    let dump = Dump::open(process.open("/proc/vmcore", OpenFlags::RDONLY).unwrap());
    let region = vm.region();
    let offset = |address| dump.offset_of(address).expect("the kernel had that memory");
    assert_eq!(dump.offset_of(region.start + ADDED), None);

    // The control: without the driver the crash kernel does not know which blocks are unplugged.
    let unplugged = region.start + PLUGGED;
    assert_eq!(dump.file.read_at(offset(unplugged), 8).unwrap(), [0xff; 8]);
    let before = vm.counters().unwrap();
    assert!(before.violations.reads > 0, "{before:?}");

    vm.start_driver().unwrap();
    let buffer = process.allocate(BLOCK).unwrap();
    let mut with_contents = 0;
    for block in (region.start..region.start + ADDED).step_by(BLOCK as usize) {
        let read = buffer.read_from(&dump.file, offset(block), 0, BLOCK as u32).unwrap();
        assert_eq!(read, BLOCK);
        let words = [0, BLOCK / 2, BLOCK - 8].map(|at| buffer.peek_u64(at).unwrap());
        if block < unplugged {
            with_contents += u32::from(words != [0; 3]);
        } else {
            assert_eq!(words, [0; 3], "{block:#x}");
        }
    }
    assert!(with_contents > 0, "the process had some of it");
    let after = vm.counters().unwrap();
    assert_eq!(after.violations, before.violations);
    assert!(after.requests.state > requests.state, "it asks the device: {after:?}");
    assert_eq!(vm.device().unwrap().plugged, PLUGGED);
}
