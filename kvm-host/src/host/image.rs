//! What the emulated host boots: a kernel, and this program with modules as its initramfs.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use agent_protocol::module_name;
use anyhow::{Context, bail};
use cpio::newc::{self, Builder, ModeFileType};
use liblzma::read::XzDecoder;
use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::NamedTempFile;

/// The ELF kernel of a kernel's directory, unpacked once into a cache: an emulated CPU needs 3 seconds for
/// that, each time.
pub fn vmlinux(kernel: &Path, cache: &Path) -> anyhow::Result<PathBuf> {
    // A kernel's directory is named after its content.
    let directory = fs::canonicalize(kernel)
        .with_context(|| format!("there is no kernel in {}", kernel.display()))?;
    let unpacked = cache.join(directory.file_name().unwrap_or_default()).join("vmlinux");
    if !unpacked.exists() {
        let image = directory.join("bzImage");
        unpack_to(&image, &unpacked).with_context(|| {
            format!("cannot unpack {} to {}", image.display(), unpacked.display())
        })?;
    }
    Ok(unpacked)
}

/// Other processes see the file only once it is complete.
fn unpack_to(image: &Path, unpacked: &Path) -> anyhow::Result<()> {
    let directory = unpacked.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    io::copy(&mut payload(&fs::read(image)?)?, &mut file)?;
    file.persist(unpacked)?;
    Ok(())
}

/// The kernel in a bzImage: `setup_sects`, `payload_offset` and `payload_length` of the boot protocol,
/// Linux's Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> anyhow::Result<XzDecoder<&[u8]>> {
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize)
    };
    let find = || {
        let setup_sectors = usize::from(*image.get(0x1f1)?);
        image.get((setup_sectors + 1) * 512 + word(0x248)?..)?.get(..word(0x24c)?)
    };
    match find() {
        Some(payload) if payload.starts_with(b"\xfd7zXZ\0") => Ok(XzDecoder::new(payload)),
        _ => bail!("not a bzImage with an xz-compressed kernel"),
    }
}

/// The initramfs, in memory: an open file without a name. The kernel makes /dev/console and /root by itself.
pub fn initramfs(kernel: &Path, modules: &[&str]) -> anyhow::Result<OwnedFd> {
    let program = fs::read("/proc/self/exe").context("cannot read this program")?;
    let release = fs::read_to_string(kernel.join("release"))
        .with_context(|| format!("there is no kernel in {}", kernel.display()))?;
    let tree = kernel.join("modules/lib/modules").join(release.trim());
    let dependencies = fs::read_to_string(tree.join("modules.dep"))
        .with_context(|| format!("there are no modules in {}", tree.display()))?;

    let file = memfd_create("initramfs", MemfdFlags::empty())?;
    let mut archive = File::from(file.try_clone()?);
    archive = add_file(archive, "init", &program)?;
    let directory = Builder::new("modules").mode(0o755).set_mode_file_type(ModeFileType::Directory);
    archive = directory.write(archive, 0).finish()?;
    for (number, path) in order_of_loading(&dependencies, modules)?.iter().enumerate() {
        let path = tree.join(path);
        let module = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive = add_file(archive, &format!("modules/{number:02}.ko"), &module)?;
    }
    newc::trailer(archive)?;
    Ok(file)
}

fn add_file(archive: File, name: &str, contents: &[u8]) -> io::Result<File> {
    let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
    let file = Builder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Regular);
    let mut writer = file.write(archive, size);
    writer.write_all(contents)?;
    writer.finish()
}

/// The files of modules and of what they need, each once. A line of modules.dep names a module's file and
/// those that it needs, what must be loaded first last.
fn order_of_loading<'a>(dependencies: &'a str, modules: &[&str]) -> anyhow::Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for module in modules {
        let (file, needed) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| name_of(file) == *module)
            .with_context(|| format!("the kernel has no module {module}"))?;
        for file in needed.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/9p/9p.ko` is module `9p`.
fn name_of(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    module_name(file.strip_suffix(".ko").unwrap_or(file))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use liblzma::write::XzEncoder;

    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_once_and_before_it() {
        let dependencies = "a/virtio-pci.ko: b/virtio_ring.ko b/virtio.ko\n\
                            b/virtio.ko:\n\
                            b/virtio_ring.ko: b/virtio.ko\n\
                            c/kvm-amd.ko: c/kvm.ko b/virtio.ko\n";
        assert_eq!(
            order_of_loading(dependencies, &["virtio_pci", "kvm_amd"]).unwrap(),
            ["b/virtio.ko", "b/virtio_ring.ko", "a/virtio-pci.ko", "c/kvm.ko", "c/kvm-amd.ko"]
        );
        let error = order_of_loading(dependencies, &["9p"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module 9p");
    }

    #[test]
    fn a_kernel_is_found_in_its_image() {
        let mut packed = XzEncoder::new(Vec::new(), 0);
        packed.write_all(b"\x7fELF").unwrap();
        let packed = packed.finish().unwrap();
        let mut image = vec![0; 0x400 + 16];
        image[0x1f1] = 1;
        image[0x248..][..4].copy_from_slice(&16_u32.to_le_bytes());
        // With the size that follows the packed kernel.
        image[0x24c..][..4].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        image.extend(packed);
        image.extend(4_u32.to_le_bytes());
        let mut kernel = Vec::new();
        payload(&image).unwrap().read_to_end(&mut kernel).unwrap();
        assert_eq!(kernel, b"\x7fELF");
        assert!(payload(&image[..image.len() - 1]).is_err());
        assert!(payload(b"").is_err());
    }
}
