use object::{
    Architecture, BinaryFormat, Endianness, SectionKind,
    write::{Object, StandardSegment},
};
use tempfile::TempDir;

use super::*;

const RELEASE: &str = "6.12.0-test";

/// A bzImage with all that is read of it: its header, and a paragraph of kernel.
fn image() -> Vec<u8> {
    let mut image = vec![0; 0x410];
    // One sector of setup code after the first, and one paragraph after both.
    image[0x1f1] = 1;
    image[0x1f4] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    // It can be entered in 64-bit mode.
    image[0x236] = 1;
    image[0x300..0x310].copy_from_slice(b"6.12.0-test (me@");
    image
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let directory = TempDir::new().unwrap();
    for (path, contents) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    directory
}

/// A kernel as scripts/guest-kernel makes it.
fn collected() -> TempDir {
    directory(&[
        ("bzImage", &image()),
        ("config", b"CONFIG_VIRTIO_MEM=m\n"),
        ("release", RELEASE.as_bytes()),
        ("kconfig/devmem-off.config", b"CONFIG_VIRTIO_MEM=y\n"),
        ("modules/lib/modules/6.12.0-test/modules.dep", b"virtio_mem.ko:\n"),
        ("modules/lib/modules/6.12.0-test/modules.builtin", b"kernel/virtio.ko\n"),
        ("modules/lib/modules/6.12.0-test/virtio_mem.ko", b"image"),
    ])
}

/// A module that needs others.
fn module(needs: &str) -> Vec<u8> {
    let mut module = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let segment = module.segment_name(StandardSegment::Data).to_vec();
    let section = module.add_section(segment, b".modinfo".to_vec(), SectionKind::ReadOnlyData);
    let fields = format!("license=GPL\0depends={needs}\0name=x\0");
    module.append_section_data(section, fields.as_bytes(), 1);
    module.write().unwrap()
}

/// What is left by `make bzImage modules`.
fn built() -> TempDir {
    directory(&[
        ("arch/x86/boot/bzImage", &image()),
        ("include/config/kernel.release", RELEASE.as_bytes()),
        (".config", b"CONFIG_OVERLAY_FS=y\n"),
        ("Kconfig", b""),
        ("modules.order", b"fs/fuse/fuse.o\nfs/fuse/virtiofs.o\nlib/virtio-ring.o\nlib/bad.o\n"),
        ("modules.builtin", b"kernel/fs/overlayfs/overlay.ko\n"),
        ("fs/fuse/virtiofs.ko", &module("fuse,virtio-ring")),
        ("fs/fuse/fuse.ko", &module("")),
        ("lib/virtio-ring.ko", &module("fuse")),
        ("lib/bad.ko", b"bad"),
    ])
}

#[test]
fn a_kernel_is_opened_from_its_directory() {
    let directory = collected();
    let kernel = GuestKernel::open(directory.path()).unwrap();
    assert_eq!(kernel.release(), RELEASE);
    assert_eq!(kernel.config().unwrap().setting("VIRTIO_MEM"), &Setting::Module);
    assert!(kernel.other_configs()["devmem-off"].is_on("VIRTIO_MEM"));
    assert!(kernel.has_built_in("virtio") && kernel.vmlinux().is_none());
    assert_eq!(kernel.lacking(&["virtio", "fuse", "virtio-mem"]).unwrap(), ["fuse"]);
    assert_eq!(kernel.modules(&["virtio_mem"]).unwrap().images["virtio_mem"][..], b"image"[..]);
}

#[test]
fn a_kernel_is_opened_where_it_was_built() {
    let directory = built();
    let kernel = GuestKernel::open(directory.path()).unwrap();
    assert_eq!(kernel.release(), RELEASE);
    assert!(kernel.config().unwrap().is_on("OVERLAY_FS") && kernel.has_built_in("overlay"));
    let modules = kernel.modules(&["virtiofs", "overlay"]).unwrap();
    let index = "fuse: \noverlay: built-in\nvirtio_ring: fuse\nvirtiofs: fuse virtio_ring\n";
    assert_eq!(modules.index.to_string(), index);
    assert_eq!(modules.images["fuse"][..], module("")[..]);
    let message = kernel.modules(&["bad"]).unwrap_err().to_string();
    assert!(message.contains("lib/bad.ko is damaged"), "{message}");
    assert!(kernel.modules(&["nothing"]).unwrap_err().to_string().contains("no module nothing"));
}

#[test]
fn a_directory_without_a_kernel_is_refused_with_the_reason() {
    let empty = directory(&[]);
    let source = directory(&[("Kconfig", b"")]);
    let unfinished = directory(&[("include/config/kernel.release", b"6.12.0")]);
    for (directory, reason) in [
        (empty, "has no kernel in it"),
        (source, "was not built there"),
        (unfinished, "arch/x86/boot/bzImage: No such file"),
    ] {
        let message = GuestKernel::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains(reason), "{message:?} should say {reason:?}");
    }
}

#[test]
fn a_missing_part_is_named() {
    let directory = collected();
    fs::remove_file(directory.path().join("config")).unwrap();
    let error = GuestKernel::open(directory.path()).unwrap_err();
    assert!(error.to_string().contains("/config"), "{error}");
}

#[test]
fn a_bare_image_names_its_release_and_finds_its_modules() {
    let directory = collected();
    let (image, modules) = (directory.path().join("bzImage"), directory.path().join("modules"));
    let bare = GuestKernel::at(&image, None).unwrap();
    assert_eq!(bare.release(), RELEASE);
    assert!(bare.modules(&[]).is_ok() && bare.lacking(&["fuse"]).is_err());
    let error = bare.modules(&["virtio_mem"]).unwrap_err();
    assert!(error.to_string().contains("virtio_mem is wanted"), "{error}");
    let kernel = GuestKernel::at(&image, Some(&modules)).unwrap();
    assert!(kernel.modules(&["virtio_mem"]).is_ok());
    let error = GuestKernel::at(&image, Some(directory.path())).unwrap_err();
    assert!(error.to_string().contains("no modules for Linux 6.12.0-test"), "{error}");
}

#[test]
fn modules_beside_a_directory_are_refused() {
    for directory in [collected(), built()] {
        let error = GuestKernel::at(directory.path(), Some(directory.path())).unwrap_err();
        assert!(matches!(error, KernelError::TwoModules(_)), "{error}");
    }
}

#[test]
fn a_file_that_is_not_a_kernel_is_refused() {
    let directory = collected();
    let truncated = directory.path().join("truncated");
    for (length, reason) in [(0, "is empty"), (0x220, "truncated"), (0x40f, "truncated")] {
        fs::write(&truncated, &image()[..length]).unwrap();
        let message = GuestKernel::at(&truncated, None).unwrap_err().to_string();
        assert!(message.contains(reason), "{message:?} should say {reason:?}");
    }
    let message = GuestKernel::at(&directory.path().join("config"), None).unwrap_err().to_string();
    assert!(message.contains("neither a bzImage nor an ELF vmlinux"), "{message}");
}
