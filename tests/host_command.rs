//! scripts/kvm-host: which files of this machine a command finds, here or in an emulated host.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs a shell command with scripts/kvm-host, in a directory.
fn run_in(directory: &Path, script: &str) -> Output {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kvm-host"))
        .args(["sh", "-c", script])
        .current_dir(directory)
        .output()
        .unwrap()
}

#[test]
fn files_below_tmp_that_the_command_line_names_are_shared() {
    // In an emulated host /tmp is a file system of its own.
    let outside = TempDir::new_in("/tmp").unwrap();
    let path = |name: &str| outside.path().join(name);
    for directory in ["work", "results"] {
        fs::create_dir(path(directory)).unwrap();
    }
    fs::write(path("kernel"), "an image").unwrap();
    fs::write(path("work/initramfs"), "files").unwrap();
    // A unique name, in /tmp itself.
    let new = outside.path().with_extension("new");
    let script = format!(
        "cat {} initramfs; echo done >{}; echo left >{}; exit 7",
        path("kernel").display(),
        path("results/log").display(),
        new.display()
    );
    let output = run_in(&path("work"), &script);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"an imagefiles");
    assert_eq!(fs::read(path("results/log")).unwrap(), b"done\n");
    assert_eq!(fs::read(&new).unwrap(), b"left\n");
    fs::remove_file(new).unwrap();
}

#[test]
fn a_file_named_by_a_symbolic_link_is_shared() {
    let outside = TempDir::new_in("/tmp").unwrap();
    let (target, link) = (outside.path().join("target"), outside.path().with_extension("link"));
    fs::write(&target, "what it leads to").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let output = run_in(Path::new("/"), &format!("cat {}", link.display()));
    fs::remove_file(link).unwrap();
    assert_eq!(output.stdout, b"what it leads to", "{output:?}");
}
