//! Opening files that the user names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a seekable file to read. Anything else, such as a pipe, is an error at once.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Without this, opening a FIFO would block until it has a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // Some file systems, such as 9p, apply O_NONBLOCK to files too, and reads are short then.
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    let what = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_char_device() => "a character device",
        () => "not a file",
    };
    Err(io::Error::other(format!("it is {what}; give a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_seekable_files_are_opened() {
        let directory = tempfile::TempDir::new().unwrap();
        let fifo = directory.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for (path, what) in [
            (directory.path(), "a directory"),
            (&fifo, "a pipe"),
            (Path::new("/dev/zero"), "a character device"),
        ] {
            let message = open_regular(path).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
        open_regular(&std::env::current_exe().unwrap()).unwrap();
    }
}
