//! The `moat` command as it runs programs in guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::moat;
use super::linux::kernel;

/// Kernels that have what is needed: FUSE, virtio-fs, overlayfs and the virtio console.
pub const KERNELS: [&str; 5] =
    ["debian-6.1", "debian-6.1-cloud", "debian-6.12", "debian-6.12-cloud", "protected"];

/// The directory of a kernel that scripts/guest-kernel has made.
pub fn directory_of(name: &str) -> PathBuf {
    kernel(name).image().parent().unwrap().to_owned()
}

/// `moat run` of what `--kernel` names, with these arguments.
pub fn run_kernel(kernel: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let mut command = moat(&["run", "--kernel"]);
    command.arg(kernel.as_ref()).args(arguments);
    command
}

/// `moat run` of a kernel that scripts/guest-kernel has made.
pub fn run_on(name: &str, arguments: &[&str]) -> Command {
    run_kernel(directory_of(name), arguments)
}

/// The same for the kernel that boots fastest.
pub fn run(arguments: &[&str]) -> Command {
    run_on("protected", arguments)
}

/// And for a shell's script.
pub fn shell(script: &str) -> Command {
    run(&["--", "sh", "-c", script])
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must exit with `status` and print each of `reasons` on standard error, and nothing on
/// standard output. Returns what it printed.
#[track_caller]
pub fn assert_fails(command: &mut Command, status: i32, reasons: &[&str]) -> String {
    let output = command.output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert_eq!(text(&output.stdout), "");
    for reason in reasons {
        assert!(message.contains(reason), "{message:?} should say {reason:?}");
    }
    message
}
