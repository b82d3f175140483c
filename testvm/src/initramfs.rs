//! The initramfs of a guest: the agent, its modules and the few things that must be there before
//! the agent has mounted anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use cpio::newc::{self, Builder, ModeFileType};

use crate::kernel::ModuleSet;

/// The agent: static, because nothing else is in the initramfs.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// Directories to mount file systems at.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// Character devices that a program needs before devtmpfs is mounted: name, major and minor.
const DEVICES: [(&str, u32, u32); 2] = [("dev/console", 5, 1), ("dev/null", 1, 3)];

/// What an initramfs holds besides the agent.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    files: BTreeMap<String, File>,
}

/// A file of an initramfs.
#[derive(Clone, Debug)]
pub struct File {
    /// What is in it.
    pub contents: Vec<u8>,
    /// Who may do what to it: the lowest twelve bits of its mode.
    pub permissions: u32,
    /// Its owner.
    pub user: u32,
    /// Its group.
    pub group: u32,
}

impl Initramfs {
    /// The agent alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds modules, with the index by which the agent loads them.
    pub fn with_modules(mut self, modules: ModuleSet) -> Self {
        self = self.with_file("modules/index", modules.index.to_string().into_bytes());
        for (name, image) in modules.images {
            self = self.with_file(&format!("modules/{name}.ko"), image.to_vec());
        }
        self
    }

    /// Adds a file of root's that all may read, and the directories it is in.
    pub fn with_file(self, path: &str, contents: Vec<u8>) -> Self {
        self.with_owned_file(path, File { contents, permissions: 0o644, user: 0, group: 0 })
    }

    /// Adds a file, and the directories it is in.
    pub fn with_owned_file(mut self, path: &str, file: File) -> Self {
        self.files.insert(path.trim_start_matches('/').to_owned(), file);
        self
    }

    /// Adds an ACPI table, which the kernel reads before it unpacks anything: Linux's
    /// Documentation/admin-guide/acpi/initrd_table_override.rst.
    pub fn with_acpi_table(self, table: Vec<u8>) -> Self {
        self.with_file("kernel/firmware/acpi/table.aml", table)
    }

    /// The archive, uncompressed: unpacking would cost the guest more time than reading.
    pub fn build(&self) -> Vec<u8> {
        self.write().expect("writing to memory does not fail")
    }

    fn write(&self) -> io::Result<Vec<u8>> {
        let mut archive = Vec::new();
        for name in self.directories() {
            let directory = entry(name, ModeFileType::Directory, 0o755).nlink(2);
            archive = directory.write(archive, 0).finish()?;
        }
        for (name, major, minor) in DEVICES {
            let device = entry(name, ModeFileType::Char, 0o600);
            archive = device.rdev_major(major).rdev_minor(minor).write(archive, 0).finish()?;
        }
        archive = write_file(archive, entry("init", ModeFileType::Regular, 0o755), AGENT)?;
        for (path, File { contents, permissions, user, group }) in &self.files {
            let entry = entry(path, ModeFileType::Regular, *permissions).uid(*user).gid(*group);
            archive = write_file(archive, entry, contents)?;
        }
        newc::trailer(archive)
    }

    /// All directories, each after the one that it is in.
    fn directories(&self) -> BTreeSet<&str> {
        let of_files = self.files.keys().flat_map(|path| directories_of(path));
        DIRECTORIES.into_iter().chain(of_files).collect()
    }
}

/// The directories that a file is in.
fn directories_of(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

fn entry(name: &str, kind: ModeFileType, permissions: u32) -> Builder {
    Builder::new(name).mode(permissions).set_mode_file_type(kind)
}

fn write_file(archive: Vec<u8>, entry: Builder, contents: &[u8]) -> io::Result<Vec<u8>> {
    let size = u32::try_from(contents.len())
        .map_err(|_| io::Error::other("a file has more than 4 GiB"))?;
    let mut writer = entry.write(archive, size);
    writer.write_all(contents)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agent_protocol::{ModuleEntry, ModuleIndex};
    use cpio::newc::Reader;

    use super::*;

    /// Name, mode and contents of every entry.
    fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut entries = BTreeMap::new();
        let mut rest = archive;
        loop {
            let reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = Vec::new();
            rest = reader.to_writer(&mut contents).unwrap();
            entries.insert(name, (mode, contents));
        }
    }

    #[test]
    fn the_agent_is_init_and_static() {
        let (mode, init) = entries(&Initramfs::new().build()).remove("init").unwrap();
        assert_eq!(mode, 0o100755);
        assert_eq!(&init[..4], b"\x7fELF");
        assert!(!program_headers(&init).contains(&PT_INTERP));
    }

    /// The type of a program header that names a loader of shared libraries.
    const PT_INTERP: u32 = 3;

    /// The types of an ELF file's program headers.
    fn program_headers(elf: &[u8]) -> Vec<u32> {
        let half = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
        let table = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
        let (entry_size, entries) = (half(54), half(56));
        assert!(entries > 0);
        let kind = |entry| elf[table + entry * entry_size..][..4].try_into().unwrap();
        (0..entries).map(|entry| u32::from_le_bytes(kind(entry))).collect()
    }

    #[test]
    fn devices_and_directories_are_there_before_anything_is_mounted() {
        let entries = entries(&Initramfs::new().build());
        assert_eq!(entries["dev"].0, 0o040755);
        assert_eq!(entries["dev/console"].0, 0o020600);
    }

    #[test]
    fn modules_come_with_their_index() {
        let entry = ModuleEntry::Loadable { dependencies: vec![] };
        let modules = ModuleSet {
            index: ModuleIndex(BTreeMap::from([("virtio".to_owned(), entry)])),
            images: BTreeMap::from([("virtio".to_owned(), b"image"[..].into())]),
        };
        let entries = entries(&Initramfs::new().with_modules(modules).build());
        assert_eq!(entries["modules/virtio.ko"].1, b"image");
        assert_eq!(entries["modules/index"].1, b"virtio: \n");
    }

    #[test]
    fn files_come_with_their_directories_and_their_owner() {
        let file = File { contents: vec![7], permissions: 0o750, user: 1000, group: 100 };
        let archive = Initramfs::new().with_owned_file("/usr/bin/program", file).build();
        let entries = entries(&archive);
        assert_eq!(entries["usr"].0, 0o040755);
        assert_eq!(entries["usr/bin"].0, 0o040755);
        assert_eq!(entries["usr/bin/program"], (0o100750, vec![7]));
    }

    #[test]
    fn other_files_keep_their_bytes() {
        let archive = Initramfs::new().with_file("/crash-kernel", vec![1, 2, 3, 4, 5]).build();
        assert_eq!(entries(&archive)["crash-kernel"].1, [1, 2, 3, 4, 5]);
    }
}
