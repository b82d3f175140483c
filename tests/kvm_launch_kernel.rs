//! The kernels that `moat run -- COMMAND` takes, and programs on those without virtio-fs.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use rustix::system::uname;
use support::command::moat;
use support::launch::{directory_of, run_kernel, run_on, text};
use support::linux::kernel;
use tempfile::TempDir;

/// A static program that prints its arguments, its user, the kernel's release and the file /etc/data, says
/// something on standard error, and exits with 7.
static PROGRAM: LazyLock<String> = LazyLock::new(|| {
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <sys/utsname.h>
        #include <unistd.h>
        int main(int count, char **arguments) {
            struct utsname system;
            char data[64] = "";
            FILE *file = fopen("/etc/data", "r");
            if (file && !fgets(data, sizeof data, file)) return 1;
            uname(&system);
            for (int at = 1; at < count; at++) printf("%s ", arguments[at]);
            printf("%d %s %s", getuid(), system.release, data);
            fputs("problem", stderr);
            return 7;
        }"#;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (directory.join("program.c"), directory.join("program"));
    fs::write(&source, SOURCE).unwrap();
    let status = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(source).status();
    assert!(status.unwrap().success());
    program.to_str().unwrap().to_owned()
});

/// The program must run on a kernel of this release, on no files but itself.
#[track_caller]
fn assert_runs(command: &mut Command, release: &str) {
    let file = format!("{}:/program", *PROGRAM);
    let Output { status, stdout, stderr } =
        command.args(["--file", &file, "--", "/program", "on"]).output().unwrap();
    assert_eq!(status.code(), Some(7), "{}", text(&stderr));
    assert_eq!(text(&stdout), format!("on {} {release} ", rustix::process::getuid().as_raw()));
    assert_eq!(text(&stderr), "problem");
}

#[test]
fn a_program_runs_on_named_files() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("data"), "of the host").unwrap();
    let data = format!("{}/data:/etc/data", directory.path().display());
    let program = format!("{}:/usr/bin/program", *PROGRAM);
    let arguments = ["--user", "65534", "--env", "PATH=/usr/bin", "--file", &program];
    let mut command = run_on("protected", &arguments);
    command.args(["--file", &data, "--", "program", "a", "b"]);
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert_eq!(status.code(), Some(7), "{}", text(&stderr));
    let release = kernel("protected").release().to_owned();
    assert_eq!(text(&stdout), format!("a b 65534 {release} of the host"));
    assert_eq!(text(&stderr), "problem");
    let mut command = run_on("protected", &["--file", &program, "--", "/bin/sh"]);
    assert_eq!(command.output().unwrap().status.code(), Some(127));
}

#[test]
fn a_kernel_is_a_vmlinux_or_a_bzimage_with_its_modules() {
    let protected = directory_of("protected");
    let modules = protected.join("modules");
    for image in ["vmlinux", "bzImage"] {
        let mut command =
            run_kernel(protected.join(image), &["--modules", modules.to_str().unwrap()]);
        assert_runs(&mut command, kernel("protected").release());
    }
}

#[test]
fn a_kernel_runs_where_it_was_built() {
    let builds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernel-build");
    let has_objects = |path: &PathBuf| path.join("include/config/kernel.release").exists();
    let entries = fs::read_dir(builds).into_iter().flatten();
    let Some(objects) = entries.map(|entry| entry.unwrap().path()).find(has_objects) else {
        println!("skipped: scripts/guest-kernel has built no kernel here");
        return;
    };
    let release = fs::read_to_string(objects.join("include/config/kernel.release")).unwrap();
    // The driver of virtio on PCI is a module that needs others.
    let mut command = run_kernel(objects, &["--transport", "pci"]);
    assert_runs(&mut command, release.trim_end());
}

#[test]
fn a_kernel_of_debian_is_named() {
    let cache = TempDir::new().unwrap();
    let kernels = cache.path().join("moat/kernels");
    fs::create_dir_all(&kernels).unwrap();
    let name = "debian-6.12-cloud";
    symlink(directory_of(name).canonicalize().unwrap(), kernels.join(name)).unwrap();
    let mut command = run_kernel(name, &["--", "uname", "-r"]);
    let output = command.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout).trim_end(), kernel(name).release());
}

#[test]
fn without_a_kernel_it_is_the_hosts_own() {
    let release = uname().release().to_string_lossy().into_owned();
    let places = [format!("/boot/vmlinuz-{release}"), format!("/lib/modules/{release}/vmlinuz")];
    let has_kernel = places.iter().any(|place| Path::new(place).exists());
    let output = moat(&["run", "--", "uname", "-r"]).output().unwrap();
    let message = text(&output.stderr);
    if has_kernel {
        assert_eq!(text(&output.stdout).trim_end(), release, "{message}");
    } else {
        assert!(!output.status.success());
        for part in [&places[0], &places[1], "debian-6.12-cloud"] {
            assert!(message.contains(part), "{message:?} should say {part:?}");
        }
    }
}
