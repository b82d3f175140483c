//! The `moat` command as users run it: what it refuses, and how its machines end.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use support::command::{Fixture, moat};
use support::linux::kernel;

/// Runs a command that must exit with `code` and print `reason` on standard error.
#[track_caller]
fn assert_refused(command: &mut Command, code: i32, reason: &str) {
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(reason), "{message:?} should say {reason:?}");
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn files_that_are_not_kernels_are_refused_with_the_reason() {
    let fixture = Fixture::new();
    let elf = fs::read(fixture.path("kernel")).unwrap();
    let mut for_arm = elf.clone();
    for_arm[18] = 183;
    let mut far_away = elf.clone();
    // e_entry, and p_paddr of the first program header.
    for at in [24, 64 + 24] {
        far_away[at..at + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    }
    fixture.write("empty", "");
    fixture.write("text", "hello, world");
    fixture.write("truncated", &elf[..elf.len() - 100]);
    fixture.write("arm64", for_arm);
    fixture.write("far", far_away);
    for (kernel, reason) in [
        ("missing", "No such file"),
        ("empty", "is empty"),
        ("text", "neither a bzImage nor an ELF vmlinux"),
        ("truncated", "truncated"),
        ("arm64", "another machine (e_machine 183)"),
        ("far", "needs memory up to 0x1000000"),
    ] {
        assert_refused(&mut fixture.run(&["--kernel", kernel]), 1, reason);
    }
    // In a directory's kernel moat would run a shell.
    assert_refused(&mut fixture.run(&["--kernel", "."]), 245, "directory");
    let linux64 = ["--kernel", "text", "--boot-protocol", "pvh"];
    assert_refused(&mut fixture.run(&linux64), 1, "neither");
}

#[test]
fn invalid_arguments_are_refused_with_the_reason() {
    let fixture = Fixture::new();
    fixture.write("big", vec![0; 40 << 20]);
    let long = "x".repeat(5000);
    for (arguments, reason) in [
        (vec!["--initrd", "missing"], "cannot read the initramfs missing"),
        (vec!["--initrd", "big", "--memory", "32M"], "more bytes than the machine has memory"),
        (vec!["--cmdline", &long], "5000 bytes"),
        (vec!["--memory", "8M"], "at least 16777216"),
        (vec!["--memory", "512"], "did you mean 512M?"),
        (vec!["--memory", "16777217"], "multiple of 4096"),
        (vec!["--memory", "900T"], "bits"),
        (vec!["--memory", "100M", "--memory-backing", "backing=hugetlb-1g"], "not whole pages"),
        (vec!["--cpus", "0"], "1 to "),
        (vec!["--cpus", "100000"], "1 to "),
        (vec!["--virtio-mem", "size=3M,block-size=2M"], "multiple of the block size"),
        (vec!["--virtio-mem", "size=1G,block-size=3M"], "power of two"),
        (vec!["--virtio-mem", "size=1G,block-size=1K"], "at least 0x1000"),
        (vec!["--virtio-mem", "size=1G,requested=2G"], "more than the region"),
        (vec!["--virtio-mem", "size=1G,requested=1M"], "nearest: 2097152"),
        (vec!["--virtio-mem", "size=8000000T"], "bits"),
        (vec!["--virtio-mem", "size=1G,backing=hugetlb-1g"], "at least 0x40000000"),
        (vec!["--virtio-mem", "size=1G,backing=file:kernel"], "kernel holds data"),
        (vec!["--virtio-mem", "size=1G,host-node=1000"], "NUMA node 1000"),
        (vec!["--api-socket", "kernel"], "is no socket"),
        (vec!["--api-socket", "missing/api"], "cannot serve"),
    ] {
        let mut command = fixture.run(&["--kernel", "kernel"]);
        assert_refused(command.args(&arguments), 1, reason);
    }
    for (arguments, reason) in [
        (vec!["--memory", "lots"], "invalid size"),
        (vec!["--memory", "0.1K"], "no whole number of bytes"),
        (vec!["--memory", "-1"], "-1"),
        (vec!["--virtio-mem", "size=1G,colour=blue"], "colour"),
        (vec!["--frobnicate"], "--frobnicate"),
    ] {
        let mut command = fixture.run(&["--kernel", "kernel"]);
        assert_refused(command.args(&arguments), 2, reason);
    }
    let mut pigeon = moat(&["run", "--kernel", "kernel", "--serial", "pigeon:here"]);
    assert_refused(&mut pigeon, 2, "tty, file:PATH or unix:PATH");
}

#[test]
fn two_serial_ports_do_not_share_a_target() {
    let mut both = moat(&["run", "--kernel", "kernel", "--serial2", "tty"]);
    assert_refused(&mut both, 1, "give each serial port its own");
}

#[test]
fn missing_permission_for_kvm_is_reported_as_such() {
    // As an unprivileged user, since root may open anything.
    let fixture = Fixture::new();
    let kernel = fixture.path("kernel");
    let public = fs::Permissions::from_mode(0o755);
    fs::set_permissions(fixture.directory.path(), public).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_moat"))
        .args(["run", "--serial", "file:/dev/null", "--kernel"])
        .arg(kernel)
        .stdin(Stdio::null());
    assert_refused(&mut command, 1, "no permission for /dev/kvm");
}

#[test]
fn a_signal_ends_a_machine_and_removes_its_socket() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let fixture = Fixture::new();
        let running = fixture.start(&[]);
        let output = running.end(signal);
        assert_eq!(output.status.code(), Some(code));
        assert!(!fixture.path("api").exists());
    }
}

#[test]
fn a_machine_is_resized_and_shown_over_its_socket() {
    let fixture = Fixture::new();
    let running = fixture.start(&["--virtio-mem", "size=4G", "--memory", "64M", "--cpus", "2"]);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let resized = running.moat("resize", &["mem0", "512M"]);
    assert_eq!(text(&resized), "mem0: requested 512M, plugged 0\n");
    assert_eq!(resized.stderr, b"");
    let resized = running.moat("resize", &["mem0", "3G"]);
    assert_eq!(text(&resized), "mem0: requested 3G, plugged 0\n");
    let warning = String::from_utf8_lossy(&resized.stderr).into_owned();
    assert!(warning.contains("48 MiB for page descriptors"), "{warning}");
    let status = running.moat("status", &["--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["vcpus"], 2);
    assert_eq!(status["memory"], 64 << 20);
    assert_eq!(status["memory_devices"][0]["requested"], 3_u64 << 30);
    assert!(text(&running.moat("status", &[])).contains("mem0"));
    for (arguments, reason) in [
        (["mem1", "1M"], "there is no device mem1; this machine has mem0"),
        (["mem0", "5G"], "more than the region's"),
        (["mem0", "3M"], "nearest: 4194304"),
        (["../x", "3M"], "is not a device"),
    ] {
        let output = running.moat("resize", &arguments);
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(reason), "{message:?} should say {reason:?}");
    }
    assert_eq!(running.end(Signal::TERM).status.code(), Some(143));
}

#[test]
fn a_machine_is_paused_resumed_and_ended_over_its_socket() {
    let fixture = Fixture::new();
    let running = fixture.start(&["--virtio-mem", "size=4G", "--memory", "64M", "--cpus", "2"]);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    for (command, state) in
        [("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("resume", "running")]
    {
        assert_eq!(text(&running.moat(command, &[])), format!("{state}\n"));
        assert!(text(&running.moat("status", &[])).starts_with(state), "{command}");
    }
    running.moat("pause", &[]);
    let resized = running.moat("resize", &["mem0", "512M"]);
    assert_eq!(text(&resized), "mem0: requested 512M, plugged 0\n");
    assert_eq!(running.end(Signal::TERM).status.code(), Some(143));
}

#[test]
fn two_machines_do_not_share_a_socket_but_a_stale_one_is_replaced() {
    let fixture = Fixture::new();
    let mut running = fixture.start(&[]);
    let mut second = fixture.run(&["--kernel", "kernel", "--api-socket", "api"]);
    assert_refused(&mut second, 1, "served by another process");
    let mut child = running.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fixture.path("api").exists(), "a killed machine cannot clean up");
    let running = fixture.start(&[]);
    assert_eq!(running.end(Signal::TERM).status.code(), Some(143));
}

#[test]
fn a_client_without_a_machine_fails_with_the_reason() {
    let nowhere = Path::new("/nonexistent/api");
    for command in ["status", "resize", "pause", "resume"] {
        let mut command = moat(&[command, "--api-socket"]);
        command.arg(nowhere);
        if command.get_args().next() == Some("resize".as_ref()) {
            command.args(["mem0", "1G"]);
        }
        assert_refused(&mut command, 1, "is it running with --api-socket?");
    }
}

#[test]
fn the_doctor_finds_this_kvm_usable() {
    let output = moat(&["doctor", "--json"]).output().unwrap();
    let diagnosis: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(diagnosis["usable"], true, "{diagnosis}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_kernel_that_does_not_boot_is_tried_and_reported_once() {
    let fixture = Fixture::new();
    let kernel = kernel("protected");
    let good = kernel.image().parent().unwrap();
    let bad = fixture.path("bad");
    fs::create_dir_all(&bad).unwrap();
    for name in ["config", "release", "modules"] {
        std::os::unix::fs::symlink(good.join(name), bad.join(name)).unwrap();
    }
    // Damaged, so that it cannot unpack itself.
    let mut image = fs::read(kernel.image()).unwrap();
    let middle = image.len() / 2;
    image[middle..middle + 4096].fill(0);
    fs::write(bad.join("bzImage"), image).unwrap();
    let output = moat(&["check", "--kernel"]).arg(&bad).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let progress = String::from_utf8_lossy(&output.stderr);
    assert_eq!(progress.matches(" guest (").count(), 1, "{progress}");
    let report = String::from_utf8_lossy(&output.stdout);
    assert_eq!(report.matches("not asked: no guest was tried after").count(), 1, "{report}");
    assert!(report.contains(" 0 failed"), "{report}");
    assert!(report.contains("the guest's kernel died: "), "{report}");
    assert!(report.contains("System halted"), "the console is shown: {report}");
}
