//! Identifies kernel images before anything is loaded, so that the error for a wrong file says what it is.

use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::path::Path;

use linux_loader::loader::bootparam;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache, ReadRef};
use vm_memory::ByteValued;

use super::BootError;
use crate::arch::x86_64::layout;

/// The formats of kernel images that can be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// A compressed x86 kernel with its set-up code.
    BzImage,
    /// An uncompressed `vmlinux`.
    Elf,
}

/// Other formats by their first bytes, and the error for each.
const KNOWN_WRONG: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "is gzip-compressed; unpack it first"),
    (b"\xfd7zXZ", "is xz-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed; unpack it first"),
    (b"!<arch>", "is a package, not a kernel; unpack it with `dpkg -x`"),
    (b"070701", "is an initramfs; give it with --initrd"),
];

/// A kernel image whose headers have been checked against its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its format.
    pub format: ImageFormat,
    /// The ranges of guest addresses that it needs: the segments of an ELF file; where a bzImage is loaded, and
    /// unpacks itself.
    ranges: Vec<Range<u64>>,
    /// Where in its file a bzImage has its version (`kernel_version` of its header), if it has one.
    pub version_offset: Option<u64>,
}

impl Image {
    /// First address of what it needs.
    pub fn start(&self) -> u64 {
        self.ranges.iter().map(|range| range.start).min().unwrap_or(0)
    }

    /// First address beyond what it needs.
    pub fn end(&self) -> u64 {
        self.ranges.iter().map(|range| range.end).max().unwrap_or(0)
    }

    /// Whether the entry point of an ELF file is in a segment.
    pub fn is_loaded(&self, entry: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&entry))
    }
}

/// Reads and checks the headers of `file`.
pub fn inspect(path: &Path, file: &File) -> Result<Image, BootError> {
    let read_error = |source| BootError::read(path, source);
    let not_a_kernel = |reason| BootError::NotAKernel { path: path.into(), reason };
    let file_size = file.metadata().map_err(read_error)?.len();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let mut start = file;
    start.rewind().map_err(read_error)?;
    start.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(read_error)?;
    let format = classify(&head).map_err(not_a_kernel)?;
    let (ranges, version_offset) = match format {
        ImageFormat::BzImage => {
            (vec![check_bzimage(&head, file_size).map_err(not_a_kernel)?], version_offset(&head))
        }
        ImageFormat::Elf => (elf_segments(&ReadCache::new(file)).map_err(not_a_kernel)?, None),
    };
    Ok(Image { format, ranges, version_offset })
}

/// Bytes at the start of a bzImage that contain all headers that are read.
const HEAD_BYTES: usize = 0x300;

fn classify(head: &[u8]) -> Result<ImageFormat, String> {
    if head.is_empty() {
        return Err("is empty".into());
    }
    if head.starts_with(b"\x7fELF") {
        return Ok(ImageFormat::Elf);
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(ImageFormat::BzImage);
    }
    if head.get(56..60) == Some(b"ARM\x64") {
        return Err("is an arm64 kernel; this machine is x86-64".into());
    }
    if head.get(48..52) == Some(b"RISC") || head.get(56..60) == Some(b"RSC\x05") {
        return Err("is a RISC-V kernel; this machine is x86-64".into());
    }
    let known = KNOWN_WRONG.iter().find(|(magic, _)| head.starts_with(magic));
    Err(known.map_or("is neither a bzImage nor an ELF vmlinux", |(_, reason)| reason).into())
}

/// Returns the guest addresses that a bzImage needs ("The Real-Mode Kernel Header",
/// Documentation/arch/x86/boot.rst). It is loaded where it unpacks itself: it moves its packed part out of the
/// way first, and elsewhere that part would take memory until the kernel runs.
fn check_bzimage(head: &[u8], file_size: u64) -> Result<Range<u64>, String> {
    const XLF_KERNEL_64: u16 = 1 << 0;
    const VERSION_2_12: u16 = 0x20c;
    const SECTOR: u64 = 512;
    const PARAGRAPH: u64 = 16;
    let header = setup_header(head).ok_or_else(|| truncated(file_size, HEAD_BYTES as u64))?;
    if header.version < VERSION_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err("is a bzImage without a 64-bit entry point; build it for x86-64".into());
    }
    let setup_sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let kernel_size = u64::from(header.syssize) * PARAGRAPH;
    let needed = (setup_sectors + 1) * SECTOR + kernel_size;
    if kernel_size == 0 {
        return Err("is a bzImage with no kernel after its setup code".into());
    }
    if file_size < needed {
        return Err(truncated(file_size, needed));
    }
    let payload_end = u64::from(header.payload_offset) + u64::from(header.payload_length);
    if payload_end > kernel_size {
        return Err(format!(
            "is a damaged bzImage: its payload ends at {payload_end:#x}, beyond its {kernel_size:#x} \
             bytes of kernel"
        ));
    }
    let start = header.pref_address.max(layout::HIGH_MEMORY_START.0);
    Ok(start..start.saturating_add(kernel_size.max(header.init_size.into())))
}

/// `kernel_version` counts from the second sector (boot.rst), and is 0 if there is no version.
fn version_offset(head: &[u8]) -> Option<u64> {
    const VERSION_BASE: u64 = 0x200;
    let version = setup_header(head)?.kernel_version;
    (version > 0).then(|| VERSION_BASE + u64::from(version))
}

fn setup_header(head: &[u8]) -> Option<bootparam::setup_header> {
    const OFFSET: usize = 0x1f1;
    let bytes = head.get(OFFSET..OFFSET + size_of::<bootparam::setup_header>())?;
    let mut header = bootparam::setup_header::default();
    header.as_mut_slice().copy_from_slice(bytes);
    Some(header)
}

fn truncated(file_size: u64, needed: u64) -> String {
    format!("is truncated: it has {file_size} bytes, and its headers describe {needed}")
}

/// The ranges of guest addresses that an ELF file has to be loaded to.
fn elf_segments<'a>(file: impl ReadRef<'a>) -> Result<Vec<Range<u64>>, String> {
    /// A vmlinux has five; many more means that the file is damaged.
    const MAX_SEGMENTS: u16 = 128;
    /// A vmlinux has less than a page of notes. They are read one by one, so a huge number would take long.
    const MAX_NOTE_BYTES: u64 = 1 << 20;
    let file_size = file.len().map_err(|()| "cannot be read")?;
    let damaged = |error: object::Error| format!("is a damaged ELF file: {error}");
    let header = FileHeader64::<Endianness>::parse(file).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let machine = header.e_machine(endian);
    if machine != EM_X86_64 || !header.is_class_64() {
        return Err(format!(
            "is an ELF file for another machine (e_machine {}); this one is x86-64",
            machine.0
        ));
    }
    if header.e_type(endian) != ET_EXEC {
        return Err("is an ELF file but not a vmlinux (not of type EXEC)".into());
    }
    if header.e_phnum(endian) > MAX_SEGMENTS {
        return Err(format!("is a damaged ELF file: it has {} segments", header.e_phnum(endian)));
    }
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, file).map_err(damaged)? {
        let (offset, in_file) = segment.file_range(endian);
        let end = offset.saturating_add(in_file);
        let kind = segment.p_type(endian);
        if [PT_LOAD, PT_NOTE].contains(&kind) && end > file_size {
            return Err(truncated(file_size, end));
        }
        if kind == PT_NOTE && in_file > MAX_NOTE_BYTES {
            return Err(format!("is a damaged ELF file: it has {in_file} bytes of notes"));
        }
        if kind == PT_LOAD {
            segments.extend(loaded_range(
                segment.p_paddr(endian),
                segment.p_memsz(endian),
                in_file,
            )?);
        }
    }
    if segments.is_empty() {
        return Err("is an ELF file with nothing to load".into());
    }
    let entry = header.e_entry(endian);
    if !segments.iter().any(|segment| segment.contains(&entry)) {
        return Err(format!("is a damaged ELF file: its entry point {entry:#x} is in no segment"));
    }
    Ok(segments)
}

/// The guest addresses of a segment of `size` bytes, of which `in_file` are in the file. None if it is empty.
fn loaded_range(start: u64, size: u64, in_file: u64) -> Result<Option<Range<u64>>, String> {
    if size == 0 {
        return Ok(None);
    }
    let end = start.checked_add(size).filter(|_| in_file <= size);
    let end = end.ok_or_else(|| {
        format!("is a damaged ELF file: {in_file} bytes for {size} bytes of memory at {start:#x}")
    })?;
    if start < layout::HIGH_MEMORY_START.0 {
        return Err(format!(
            "is an ELF file that is loaded at {start:#x}, where boot structures are: nothing may be \
             loaded below {:#x}",
            layout::HIGH_MEMORY_START.0
        ));
    }
    Ok(Some(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Write;

    use object::elf::*;
    use object::write::elf::Writer;

    #[test]
    fn the_error_for_a_wrong_image_says_what_it_is() {
        let mut arm64 = vec![0; 64];
        arm64[56..60].copy_from_slice(b"ARM\x64");
        for (head, reason) in [
            (&b""[..], "is empty"),
            (&arm64, "arm64"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"hello", "neither"),
        ] {
            let message = classify(head).unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }

    /// The head of a bzImage of 1 KiB of setup code and 64 KiB of kernel.
    fn bzimage(change: impl FnOnce(&mut bootparam::setup_header)) -> Vec<u8> {
        let mut header = bootparam::setup_header {
            setup_sects: 1,
            syssize: 0x1000,
            header: u32::from_le_bytes(*b"HdrS"),
            version: 0x20f,
            xloadflags: 1,
            payload_offset: 0x100,
            payload_length: 0xff00,
            ..Default::default()
        };
        change(&mut header);
        let mut head = vec![0; HEAD_BYTES];
        head[0x1f1..][..size_of_val(&header)].copy_from_slice(header.as_slice());
        head
    }

    #[test]
    fn a_bzimage_must_be_as_long_as_its_headers_say() {
        const SIZE: u64 = 1024 + 0x1_0000;
        let head = bzimage(|_| {});
        assert_eq!(classify(&head), Ok(ImageFormat::BzImage));
        let needed = 0x10_0000..0x11_0000;
        assert_eq!(check_bzimage(&head, SIZE), Ok(needed.clone()));
        assert_eq!(check_bzimage(&head, SIZE + 1234), Ok(needed), "a signature may follow");
        let unpacks = bzimage(|header| {
            (header.pref_address, header.init_size) = (0x100_0000, 0x20_0000);
        });
        assert_eq!(check_bzimage(&unpacks, SIZE), Ok(0x100_0000..0x120_0000));
        let message = check_bzimage(&head, SIZE - 1).unwrap_err();
        let expected = "is truncated: it has 66559 bytes, and its headers describe 66560";
        assert_eq!(message, expected);
        assert!(check_bzimage(&head[..0x250], 0x250).unwrap_err().contains("truncated"));
        type Change = fn(&mut bootparam::setup_header);
        let wrong: [(Change, &str); 4] = [
            (|header| header.version = 0x20d - 2, "64-bit entry"),
            (|header| header.xloadflags = 0, "64-bit entry"),
            (|header| header.syssize = 0, "no kernel after"),
            (|header| header.payload_length = 0xff01, "payload ends"),
        ];
        for (change, reason) in wrong {
            let message = check_bzimage(&bzimage(change), SIZE).unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }

    /// A program header.
    #[derive(Clone, Copy)]
    struct Segment {
        kind: ProgramType,
        offset: u64,
        in_file: u64,
        address: u64,
        size: u64,
    }

    const CODE: Segment =
        Segment { kind: PT_LOAD, offset: 0x1000, in_file: 0x1000, address: 2 << 20, size: 0x2000 };
    const NOTE: Segment = Segment { kind: PT_NOTE, in_file: 0x40, ..CODE };

    fn elf(machine: Machine, kind: FileType, entry: u64, segments: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(Endianness::Little, true, &mut bytes);
        writer.reserve_file_header();
        writer.reserve_program_headers(segments.len() as u32);
        let header = object::write::elf::FileHeader {
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            e_type: kind,
            e_machine: machine,
            e_entry: entry,
            e_flags: FileFlags(0),
        };
        writer.write_file_header(&header).unwrap();
        writer.write_align_program_headers();
        for segment in segments {
            writer.write_program_header(&object::write::elf::ProgramHeader {
                p_type: segment.kind,
                p_flags: PF_R | PF_X,
                p_offset: segment.offset,
                p_vaddr: segment.address,
                p_paddr: segment.address,
                p_filesz: segment.in_file,
                p_memsz: segment.size,
                p_align: 0x1000,
            });
        }
        bytes.resize(0x2000, 0);
        bytes
    }

    fn vmlinux(entry: u64, segments: &[Segment]) -> Result<Vec<Range<u64>>, String> {
        elf_segments(&elf(EM_X86_64, ET_EXEC, entry, segments)[..])
    }

    #[test]
    fn an_elf_file_must_match_its_headers() {
        const MIB: u64 = 1 << 20;
        let empty = Segment { in_file: 0, size: 0, ..CODE };
        let bss = Segment { in_file: 0, address: 4 * MIB, ..CODE };
        let code = 2 * MIB..2 * MIB + 0x2000;
        assert_eq!(vmlinux(2 * MIB, &[CODE, NOTE, empty]), Ok(vec![code.clone()]));
        assert_eq!(vmlinux(2 * MIB, &[CODE, bss]), Ok(vec![code, 4 * MIB..4 * MIB + 0x2000]));
        for (entry, segments, reason) in [
            (2 * MIB, &[][..], "nothing to load"),
            (2 * MIB, &[empty], "nothing to load"),
            (2 * MIB, &[NOTE], "nothing to load"),
            (MIB, &[CODE], "its entry point 0x100000 is in no segment"),
            (2 * MIB, &[Segment { in_file: 0x1001, ..CODE }], "truncated"),
            (2 * MIB, &[Segment { offset: u64::MAX, ..CODE }], "truncated"),
            (2 * MIB, &[CODE, Segment { in_file: 1 << 40, ..NOTE }], "truncated"),
            (2 * MIB, &[Segment { size: 0xfff, ..CODE }], "4096 bytes for 4095 bytes of memory"),
            (2 * MIB, &[CODE, Segment { address: u64::MAX, ..CODE }], "of memory at"),
            (2 * MIB, &[CODE, Segment { address: 0x7000, ..CODE }], "loaded at 0x7000"),
        ] {
            let message = vmlinux(entry, segments).unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
        assert!(vmlinux(2 * MIB, &[CODE; 129]).unwrap_err().contains("129 segments"));
        let arm64 = elf(EM_AARCH64, ET_EXEC, 2 * MIB, &[CODE]);
        assert!(elf_segments(&arm64[..]).unwrap_err().contains("e_machine 183"));
        let shared = elf(EM_X86_64, ET_DYN, 2 * MIB, &[CODE]);
        assert!(elf_segments(&shared[..]).unwrap_err().contains("not of type EXEC"));
        assert!(elf_segments(&b"\x7fELF\x02"[..]).unwrap_err().contains("damaged"));
    }

    #[test]
    fn an_elf_file_with_huge_notes_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let huge = Segment { in_file: 1 << 40, ..NOTE };
        let bytes = elf(EM_X86_64, ET_EXEC, 2 << 20, &[CODE, huge]);
        (&file).write_all(&bytes).unwrap();
        file.set_len(1 << 41).unwrap();
        let error = inspect(Path::new("sparse"), &file).unwrap_err();
        let expected = "sparse is a damaged ELF file: it has 1099511627776 bytes of notes";
        assert_eq!(error.to_string(), expected);
    }
}
