//! Telling kernel images apart before anything is loaded, so that a wrong one is named as what it
//! is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::BootError;

/// The images that boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// A compressed x86 kernel with its set-up code.
    BzImage,
    /// An uncompressed `vmlinux`.
    Elf,
}

/// Compressed or foreign formats, by how they begin, and what to say of them.
const KNOWN_WRONG: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "is gzip-compressed; unpack it first"),
    (b"\xfd7zXZ", "is xz-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed; unpack it first"),
    (b"!<arch>", "is a package, not a kernel; unpack it with `dpkg -x`"),
    (b"070701", "is an initramfs; give it with --initrd"),
];

/// Looks at the first bytes of `file`.
pub fn detect(path: &Path, file: &mut File) -> Result<ImageFormat, BootError> {
    let mut head = Vec::with_capacity(0x300);
    file.take(0x300).read_to_end(&mut head).map_err(|source| BootError::read(path, source))?;
    classify(&head).map_err(|reason| BootError::NotAKernel { path: path.into(), reason })
}

fn classify(head: &[u8]) -> Result<ImageFormat, String> {
    if head.is_empty() {
        return Err("is empty".into());
    }
    if head.starts_with(b"\x7fELF") {
        return classify_elf(head);
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return classify_bzimage(head);
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

fn classify_elf(head: &[u8]) -> Result<ImageFormat, String> {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;
    const TYPE_EXEC: u16 = 2;
    if head.len() < 64 {
        return Err("is a truncated ELF file".into());
    }
    let half = |offset: usize| u16::from_le_bytes([head[offset], head[offset + 1]]);
    if head[4] != CLASS_64 || half(18) != MACHINE_X86_64 {
        return Err(format!(
            "is an ELF file for another machine (e_machine {}); this one is x86-64",
            half(18)
        ));
    }
    if half(16) != TYPE_EXEC {
        return Err("is an ELF file but no vmlinux (not of type EXEC)".into());
    }
    Ok(ImageFormat::Elf)
}

fn classify_bzimage(head: &[u8]) -> Result<ImageFormat, String> {
    const XLF_KERNEL_64: u16 = 1 << 0;
    const VERSION_2_12: u16 = 0x20c;
    let half = |offset: usize| {
        head.get(offset..offset + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    if half(0x206) < VERSION_2_12 || half(0x236) & XLF_KERNEL_64 == 0 {
        return Err("is a bzImage without a 64-bit entry point; build it for x86-64".into());
    }
    Ok(ImageFormat::BzImage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_images_are_named_as_what_they_are() {
        let mut arm64 = vec![0; 64];
        arm64[56..60].copy_from_slice(b"ARM\x64");
        let mut elf_arm64 = vec![0; 64];
        elf_arm64[..5].copy_from_slice(b"\x7fELF\x02");
        elf_arm64[16] = 2;
        elf_arm64[18] = 183;
        let mut bzimage_32 = vec![0; 0x300];
        bzimage_32[0x202..0x206].copy_from_slice(b"HdrS");
        bzimage_32[0x206..0x208].copy_from_slice(&[0x0d, 0x02]);
        for (head, reason) in [
            (&b""[..], "is empty"),
            (b"\x7fELF\x02", "truncated"),
            (&arm64, "arm64"),
            (&elf_arm64, "e_machine 183"),
            (&bzimage_32, "64-bit entry"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"hello", "neither"),
        ] {
            let message = classify(head).unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
        let mut bzimage = bzimage_32;
        bzimage[0x236] = 1;
        assert_eq!(classify(&bzimage), Ok(ImageFormat::BzImage));
    }
}
