//! `moat kernel`, and which kernel `moat run` takes, as far as that needs neither KVM nor a network.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use support::command::moat;
use support::launch::assert_fails;
use support::linux::kernel;
use tempfile::TempDir;

/// The exit status when a program cannot be run.
const NOT_LAUNCHED: i32 = 245;

/// Where nothing listens.
const NO_MIRROR: &str = "http://127.0.0.1:1/debian";

/// A user's cache.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn kernels(&self) -> PathBuf {
        self.0.path().join("moat/kernels")
    }

    fn moat(&self, arguments: &[&str]) -> Command {
        let mut command = moat(arguments);
        command.env("XDG_CACHE_HOME", self.0.path());
        command
    }

    /// As if a kernel had been fetched.
    fn add(&self, name: &str, release: &str) {
        let unpacked = self.kernels().join("unpacked").join(release);
        fs::create_dir_all(&unpacked).unwrap();
        fs::write(unpacked.join("release"), release).unwrap();
        symlink(Path::new("unpacked").join(release), self.kernels().join(name)).unwrap();
    }
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn kernels_are_listed_with_what_has_been_fetched() {
    let cache = Cache::new();
    cache.add("debian-6.1", "6.1.0-9-amd64");
    let list = stdout(&mut cache.moat(&["kernel", "list"]));
    let row = |name: &str| list.lines().find(|line| line.trim().starts_with(name)).unwrap();
    assert!(row("debian-6.1 ").contains("6.1.0-9-amd64"), "{list}");
    assert!(row("debian-newest").trim_end().ends_with('-'), "{list}");
    let json = stdout(&mut cache.moat(&["kernel", "list", "--json"]));
    let kernels: serde_json::Value = serde_json::from_str(&json).unwrap();
    let find = |name: &str| kernels.as_array().unwrap().iter().find(|it| it["name"] == name);
    assert_eq!(find("debian-6.1").unwrap()["release"], "6.1.0-9-amd64");
    assert_eq!(find("debian-5.10").unwrap()["directory"], serde_json::Value::Null);
}

#[test]
fn a_kernel_that_has_been_fetched_is_not_looked_for_again() {
    let cache = Cache::new();
    cache.add("debian-6.1", "6.1.0-9-amd64");
    let mut path = cache.moat(&["kernel", "path", "debian-6.1", "--mirror", NO_MIRROR]);
    assert_eq!(stdout(&mut path), format!("{}/debian-6.1\n", cache.kernels().display()));
}

#[test]
fn what_hinders_a_fetch_is_named_with_what_to_do() {
    let cache = Cache::new();
    let fetch = |arguments: &[&str]| {
        let mut command = cache.moat(&["kernel", "fetch"]);
        command.args(arguments);
        command
    };
    assert_fails(&mut fetch(&["debian-6.2"]), 2, &["debian-6.2", "debian-6.12-cloud"]);
    let blank = ["debian-6.1", "--mirror", "http://one.example two"];
    assert_fails(&mut fetch(&blank), 1, &["--mirror http://one.example two", "a URL without"]);
    let unreachable = ["debian-6.1", "--mirror", NO_MIRROR];
    let reasons = ["127.0.0.1", "linux-image-amd64", "bookworm", "--mirror URL"];
    let message = assert_fails(&mut fetch(&unreachable), 1, &reasons);
    assert!(message.lines().any(|line| line.starts_with("W: ")), "apt's own: {message}");
    let mut lacking = fetch(&["debian-6.1"]);
    let reasons = ["no program apt-get", "package apt"];
    assert_fails(lacking.env("PATH", "/no/such"), 1, &reasons);
    for (directory, reason) in [("/proc/none", "cannot write /proc/none"), ("/dev/null", "moat")] {
        let mut command = fetch(&["debian-6.1"]);
        assert_fails(command.env("XDG_CACHE_HOME", directory), 1, &[reason, "XDG_CACHE_HOME"]);
    }
    let mut homeless = fetch(&["debian-6.1"]);
    homeless.env("XDG_CACHE_HOME", "relative").env_remove("HOME");
    assert_fails(&mut homeless, 1, &["set HOME, or XDG_CACHE_HOME"]);
}

#[test]
fn a_fetch_removes_what_others_have_left_and_leaves_nothing_itself() {
    let cache = Cache::new();
    cache.add("debian-6.1", "6.1.0-9-amd64");
    let unpacked = cache.kernels().join("unpacked");
    for left in [".tmpAbCdEf/apt", "linux-image-6.1.0-8-amd64_6.1-8"] {
        fs::create_dir_all(unpacked.join(left)).unwrap();
    }
    let fetch = ["kernel", "fetch", "debian-6.1", "--mirror", NO_MIRROR];
    assert_fails(&mut cache.moat(&fetch), 1, &["linux-image-amd64"]);
    let names = fs::read_dir(&unpacked).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["6.1.0-9-amd64"]);
    let path = ["kernel", "path", "debian-6.1"];
    assert_eq!(stdout(&mut cache.moat(&path)).lines().count(), 1);
}

#[test]
fn fetches_wait_for_each_other() {
    let cache = Cache::new();
    fs::create_dir_all(cache.kernels()).unwrap();
    let lock = File::create(cache.kernels().join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut waiting = cache.moat(&["kernel", "path", "debian-6.1", "--mirror", NO_MIRROR]);
    let mut child = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("waiting for another process"), "{line}");
    // What the other process fetches is what this one wanted.
    cache.add("debian-6.1", "6.1.0-9-amd64");
    drop(lock);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("moat/kernels/debian-6.1\n"));
}

#[test]
fn a_kernel_that_cannot_be_used_is_refused_with_the_reason() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let protected = kernel("protected").image().parent().unwrap().to_str().unwrap().to_owned();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("truncated"), &fs::read(kernel("protected").image()).unwrap()[..100_000])
        .unwrap();
    let (empty, truncated, absent) = (path("empty"), path("truncated"), path("absent"));
    let modules = format!("{protected}/modules");
    for (command, program, status) in
        [("run", &["--", "true"][..], NOT_LAUNCHED), ("check", &[], 1)]
    {
        for (arguments, reason) in [
            (
                &["--kernel", "debian-6.2"][..],
                "no kernel of that name either; the names are debian-5.10",
            ),
            (&["--kernel", &empty], "has no kernel in it"),
            (&["--kernel", &absent, "--modules", &modules], "No such file"),
            (&["--kernel", &truncated, "--modules", &modules], "is truncated: it has 100000 bytes"),
            (&["--kernel", &protected, "--modules", &modules], "has modules of its own"),
            (&["--kernel", "debian-6.1", "--modules", &modules], "has modules of its own"),
        ] {
            assert_fails(moat(&[command]).args(arguments).args(program), status, &[reason]);
        }
    }
    assert_fails(&mut moat(&["run", "--modules", &modules]), 2, &["--kernel"]);
    let boot = ["run", "--kernel", &absent, "--modules", &modules, "--initrd", &absent];
    assert_fails(&mut moat(&boot), 2, &["cannot be used with"]);
}

#[test]
fn what_a_kernel_lacks_is_named_by_its_symbols() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let image = path("bzImage");
    fs::copy(kernel("protected").image(), &image).unwrap();
    fs::write(path("modules.dep"), "").unwrap();
    let run = |built_in: &str, arguments: &[&str]| {
        fs::write(path("modules.builtin"), built_in).unwrap();
        let mut command = moat(&["run", "--modules"]);
        command.arg(directory.path()).arg("--kernel").arg(&image).args(arguments);
        command.args(["--", "/bin/true"]);
        command
    };
    let with_streams = "virtio_mmio.ko\nvirtio_console.ko\n";
    let shares = ["lacks FUSE_FS, VIRTIO_FS, OVERLAY_FS for this", "--file"];
    assert_fails(&mut run(with_streams, &[]), NOT_LAUNCHED, &shares);
    let share = ["--file", "/bin/true", "--share", "/etc"];
    let reason = "lacks FUSE_FS, VIRTIO_FS for this";
    assert_fails(&mut run(with_streams, &share), NOT_LAUNCHED, &[reason]);
    let pci = ["--transport", "pci", "--file", "/bin/true"];
    let reason = "lacks VIRTIO_PCI, VIRTIO_CONSOLE for";
    let message = assert_fails(&mut run("", &pci), NOT_LAUNCHED, &[reason]);
    assert!(!message.contains("--file"), "{message}");
}

#[test]
fn files_that_a_guest_cannot_have_are_refused() {
    let run = |arguments: &[&str]| {
        let mut command = moat(&["run", "--kernel"]);
        command.arg(kernel("protected").image().parent().unwrap()).args(arguments);
        command.args(["--", "/bin/sh"]);
        command
    };
    for (arguments, reason) in [
        (&["--file", "/bin/sh"][..], "/bin/sh is not static: it starts with /lib"),
        (&["--file", "/etc"], "not a regular file"),
        (&["--file", "/no/such"], "cannot read /no/such"),
        (&["--file", "/bin/sh:bin/sh"], "as in /bin/sh:/bin/program"),
        (&["--file", "/bin/sh:/tmp/sh"], "something of its own at /tmp"),
        (&["--file", "/bin/sh", "--root", "/"], "cannot be used with"),
    ] {
        assert_fails(&mut run(arguments), NOT_LAUNCHED, &[reason]);
    }
}
