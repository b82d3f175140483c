//! The release of the kernel in an image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::BootError;
use super::image::{self, ImageFormat};
use crate::files;

/// No release has more bytes (`__NEW_UTS_LEN`).
const MAX_BYTES: usize = 64;

/// What `uname -r` will print in a kernel. Of a bzImage only the header is read.
pub fn kernel_release(path: &Path) -> Result<String, BootError> {
    let read_error = |source| BootError::read(path, source);
    let file = files::open_regular(path).map_err(read_error)?;
    let image = image::inspect(path, &file)?;
    let release = match (image.format, image.version_offset) {
        (ImageFormat::BzImage, Some(offset)) => word_at(&file, offset),
        (ImageFormat::BzImage, None) => Ok(None),
        (ImageFormat::Elf, _) => in_vmlinux(&file),
    };
    let not_named = || BootError::NotAKernel {
        path: path.into(),
        reason: "does not say which release of Linux it is".into(),
    };
    release.map_err(read_error)?.ok_or_else(not_named)
}

fn word_at(mut file: &File, offset: u64) -> io::Result<Option<String>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    Ok(first_word(&text))
}

/// It is in `linux_banner`, which has the same form in every release.
fn in_vmlinux(mut file: &File) -> io::Result<Option<String>> {
    const BANNER: &[u8] = b"Linux version ";
    const PIECE_BYTES: usize = 1 << 20;
    file.rewind()?;
    let mut piece = Vec::new();
    loop {
        let read = file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        // What is too near the end is looked at with the next piece.
        let unsure = if read == 0 { 0 } else { BANNER.len() + MAX_BYTES + 1 };
        let end = piece.len().saturating_sub(unsure);
        let starts = (0..end).filter(|&start| piece[start..].starts_with(BANNER));
        let mut releases = starts.filter_map(|start| first_word(&piece[start + BANNER.len()..]));
        if let Some(release) = releases.find(|it| it.starts_with(|it: char| it.is_ascii_digit())) {
            return Ok(Some(release));
        }
        if read == 0 {
            return Ok(None);
        }
        drop(piece.drain(..end));
    }
}

/// What stands before the first blank or NUL.
fn first_word(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|byte| [0, b' '].contains(byte))?;
    String::from_utf8(text[..end].to_vec()).ok().filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(parts: &[&[u8]]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        parts.iter().for_each(|part| file.write_all(part).unwrap());
        file
    }

    #[test]
    fn the_banner_of_a_vmlinux_is_found_wherever_it_is() {
        let banner = b"Linux version 6.12.0-test (me@here) #1 SMP";
        for before in [0, 10, (1 << 20) - 20, (1 << 20) - 1, 1 << 20, (1 << 20) + 5] {
            let file = file(&[b"Linux version %s", &vec![0; before], banner]);
            assert_eq!(in_vmlinux(&file).unwrap().as_deref(), Some("6.12.0-test"), "{before}");
        }
        assert_eq!(in_vmlinux(&file(&[b"Linux version 6.12"])).unwrap(), None, "it is cut off");
        assert_eq!(in_vmlinux(&file(&[&vec![b'L'; 3 << 20]])).unwrap(), None);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        for (path, reason) in [
            ("/dev/null", "a character device"),
            ("/proc/self/exe", "not a vmlinux"),
            ("/no/such", "No such file"),
            ("/proc/self/maps", "neither a bzImage"),
        ] {
            let message = kernel_release(Path::new(path)).unwrap_err().to_string();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
