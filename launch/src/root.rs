//! What a guest has for its root directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};
use testvm::initramfs::File;
use thiserror::Error;

/// What a guest has for its root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A directory of the host, by virtio-fs, under a layer in the guest's memory.
    Directory(PathBuf),
    /// Nothing but these files, in an initramfs: for kernels without virtio-fs.
    Files(Vec<GuestFile>),
}

/// A file of the host's that is copied into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// On the host.
    pub file: PathBuf,
    /// In the guest.
    pub path: PathBuf,
}

/// Why files cannot be copied into a guest.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}, which is to be a file of the guest: {source}")]
    Unreadable {
        /// On the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only files can be copied.
    #[error("{0} is not a regular file: name each file that the guest is to have")]
    NotAFile(PathBuf),
    /// Its place in the guest.
    #[error(
        "cannot have {file} at {path} in the guest: expected a path from the root directory, without . or .., as in {file}:/bin/program"
    )]
    InvalidPath {
        /// On the host.
        file: PathBuf,
        /// In the guest.
        path: PathBuf,
    },
    /// The guest has something else there.
    #[error("cannot have a file at {path} in the guest, which has something of its own at /{name}")]
    Reserved {
        /// In the guest.
        path: PathBuf,
        /// What is taken.
        name: String,
    },
    /// Two files want the same place.
    #[error("two files of the guest are to be at {0}, or one of them below it")]
    Twice(PathBuf),
    /// A program that cannot run alone.
    #[error(
        "{program} is not static: it starts with {interpreter}, which is not among the guest's files. Link it statically, or give that and its libraries (ldd lists them) with --file too"
    )]
    NotStatic {
        /// In the guest.
        program: String,
        /// The loader of its libraries.
        interpreter: String,
    },
}

/// What a guest that runs out of an initramfs has of its own: the agent's files, and file systems of the kernel.
const RESERVED: [&str; 8] = ["dev", "init", "modules", "proc", "run", "sys", "tmp", "workload"];

/// Reads files, and returns them by their paths in the guest. `program` is what will be run there.
pub fn read(files: &[GuestFile], program: &[u8]) -> Result<BTreeMap<String, File>, FileError> {
    let mut all = BTreeMap::new();
    for GuestFile { file, path } in files {
        let path = path_in_guest(file, path)?;
        if all.contains_key(&path) {
            return Err(FileError::Twice(path.into()));
        }
        all.insert(path, read_file(file)?);
    }
    let is_above = |path: &String| all.keys().any(|other| other.starts_with(&format!("{path}/")));
    if let Some(path) = all.keys().find(|path| is_above(path)) {
        return Err(FileError::Twice(path.into()));
    }
    let program = String::from_utf8_lossy(program);
    if let Some(file) = all.get(&*program)
        && let Some(interpreter) = interpreter(&file.contents)
        && !all.contains_key(&interpreter)
    {
        return Err(FileError::NotStatic { program: program.into_owned(), interpreter });
    }
    Ok(all)
}

fn path_in_guest(file: &Path, path: &Path) -> Result<String, FileError> {
    let invalid = || FileError::InvalidPath { file: file.to_owned(), path: path.to_owned() };
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err(invalid());
    }
    let names = components.map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let names: Vec<_> = names.collect::<Option<_>>().ok_or_else(invalid)?;
    match names.first() {
        None => Err(invalid()),
        Some(name) if RESERVED.contains(name) => {
            Err(FileError::Reserved { path: path.to_owned(), name: (*name).to_owned() })
        }
        Some(_) => Ok(format!("/{}", names.join("/"))),
    }
}

fn read_file(path: &Path) -> Result<File, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    Ok(File {
        contents: fs::read(path).map_err(unreadable)?,
        permissions: metadata.mode() & 0o7777,
        user: metadata.uid(),
        group: metadata.gid(),
    })
}

/// The program that loads a program's shared libraries, if it has any.
fn interpreter(program: &[u8]) -> Option<String> {
    let header = FileHeader64::<Endianness>::parse(program).ok()?;
    let endian = header.endian().ok()?;
    let mut segments = header.program_headers(endian, program).ok()?.iter();
    let name = segments.find_map(|segment| segment.interpreter(endian, program).ok().flatten())?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(file: &str, path: &str) -> GuestFile {
        GuestFile { file: file.into(), path: path.into() }
    }

    #[test]
    fn files_are_read_with_their_permissions() {
        let files = [file("/etc/passwd", "/etc//passwd"), file("/bin/sh", "/other/sh")];
        let files = read(&files, b"/bin/sh").unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["/etc/passwd", "/other/sh"]);
        assert_eq!(files["/etc/passwd"].permissions, 0o644);
        assert_eq!(files["/other/sh"].contents, fs::read("/bin/sh").unwrap());
    }

    #[test]
    fn what_cannot_be_a_file_of_the_guest_is_refused() {
        let passwd = |path| vec![file("/etc/passwd", path)];
        let two = |path, other| vec![file("/etc/passwd", path), file("/etc/group", other)];
        for (files, reason) in [
            (vec![file("/no/such", "/x")], "cannot read /no/such"),
            (vec![file("/etc", "/x")], "not a regular file"),
            (passwd("x"), "as in /etc/passwd:/bin/program"),
            (passwd("/"), "expected a path"),
            (passwd("/a/../b"), "expected a path"),
            (passwd("/dev/x"), "at /dev"),
            (passwd("/init"), "at /init"),
            (two("/x", "/x"), "at /x,"),
            (two("/x", "/x/y"), "at /x,"),
        ] {
            let message = read(&files, b"").unwrap_err().to_string();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }

    #[test]
    fn a_program_with_shared_libraries_needs_its_loader() {
        let shell = file("/bin/sh", "/bin/sh");
        let error = read(std::slice::from_ref(&shell), b"/bin/sh").unwrap_err();
        let FileError::NotStatic { interpreter, .. } = &error else { panic!("{error}") };
        read(&[shell.clone(), file(interpreter, interpreter)], b"/bin/sh").unwrap();
        assert!(read(&[shell], b"/bin/other").is_ok());
    }
}
