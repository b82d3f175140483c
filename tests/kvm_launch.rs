//! `moat run -- COMMAND`: programs on the host's files, their streams and their exit statuses.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use support::command::moat;
use support::linux::kernel;
use tempfile::TempDir;

/// Kernels that have what is needed: FUSE, virtio-fs, overlayfs and the virtio console.
const KERNELS: [&str; 4] = ["debian-6.1", "debian-6.1-cloud", "debian-6.12", "debian-6.12-cloud"];

/// A kernel as a user names it.
fn directory_of(name: &str) -> String {
    kernel(name).image().parent().unwrap().to_str().unwrap().to_owned()
}

/// `moat run` of a kernel, with these arguments.
fn run_on(name: &str, arguments: &[&str]) -> Command {
    let mut command = moat(&["run", "--kernel"]);
    command.arg(directory_of(name)).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Command {
    run_on("debian-6.12-cloud", arguments)
}

fn shell(script: &str) -> Command {
    run(&["--", "sh", "-c", script])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must exit with `status` and print `reason` on standard error.
#[track_caller]
fn assert_fails(command: &mut Command, status: i32, reason: &str) {
    let output = command.output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert!(message.contains(reason), "{message:?} should say {reason:?}");
}

#[test]
fn a_program_runs_on_every_kernel_and_each_transport() {
    for (name, transport) in KERNELS.into_iter().zip(["mmio", "pci", "pci", "mmio"]) {
        let arguments = ["--transport", transport, "--", "uname", "-r"];
        let output = run_on(name, &arguments).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name} on {transport}: {message}");
        assert_eq!(text(&output.stdout).trim_end(), kernel(name).release(), "{transport}");
        assert_eq!(message, "", "{name} on {transport}");
    }
}

#[test]
fn a_program_runs_with_devices_behind_an_iommu() {
    let arguments = ["--transport", "pci", "--iommu", "virtio", "--", "echo", "hello"];
    let output = run_on("debian-6.12", &arguments).output().unwrap();
    assert_eq!(text(&output.stdout), "hello\n", "{}", text(&output.stderr));
}

#[test]
fn the_exit_status_is_the_programs() {
    for (script, status) in [("exit 7", 7), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)] {
        let output = shell(script).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{script}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{script}");
    }
    // For a status that moat uses itself, a message says that it is the program's.
    assert_fails(&mut shell("exit 242"), 242, "the program itself exited with status 242");
}

#[test]
fn failures_outside_the_program_have_statuses_of_their_own() {
    assert_fails(&mut run(&["--", "no-such-program"]), 127, "there is no program");
    assert_fails(&mut run(&["--", "/etc/passwd"]), 126, "cannot start the program");
    assert_fails(&mut run(&["--cwd", "/no/such", "--", "true"]), 126, "working directory");
    let panic = "echo c >/proc/sysrq-trigger";
    assert_fails(&mut run(&["--user", "root", "--", "sh", "-c", panic]), 240, "kernel panicked");
    assert_fails(&mut run(&["--boot-timeout", "0", "--", "true"]), 241, "within 0 s");
    assert_fails(&mut run(&["--timeout", "1", "--", "sleep", "1000"]), 242, "longer than 1 s");
    let off = "echo o >/proc/sysrq-trigger; sleep 1000";
    assert_fails(&mut run(&["--user", "root", "--", "sh", "-c", off]), 244, "powered off");
}

#[test]
fn invalid_options_are_refused_before_the_machine_starts() {
    for (arguments, status, reason) in [
        (["--root", "/no/such", "--", "true"], 1, "/no/such"),
        (["--share", "/no/such", "--", "true"], 2, "cannot share /no/such"),
        (["--share", "/etc:mnt", "--", "true"], 2, "expected an absolute path"),
        (["--user", "nobody-there", "--", "true"], 1, "no such user"),
        (["--env", "=x", "--", "true"], 1, "expected NAME or NAME=VALUE"),
        (["--serial", "tty", "--", "true"], 1, "the terminal is the program's"),
        (["--initrd", "x", "--", "true"], 2, "cannot be used with"),
    ] {
        assert_fails(&mut run(&arguments), status, reason);
    }
    let shares = (0..10).flat_map(|n| ["--share".to_owned(), format!("/etc:/mnt/{n}")]);
    let reason = "11 shared directories, the root among them: virtio-mmio has interrupts for 10";
    assert_fails(run(&[]).args(shares).args(["--", "true"]), 1, reason);
}

#[test]
fn standard_streams_carry_any_bytes_and_stay_apart() {
    let mut command = shell("cat; echo problem >&2");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n ^ n >> 8) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let expected = sent.clone();
    let sender = thread::spawn(move || stdin.write_all(&sent).unwrap());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    sender.join().unwrap();
    assert!(stdout == expected, "{} bytes came back", stdout.len());
    assert_eq!(text(&stderr), "problem\n");
    assert!(status.success());
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    let mut child = run(&["--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 1 << 16];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_script_is_read_from_standard_input() {
    let mut child =
        run(&["--script"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo from a script\nexit 3\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("from a script\n", Some(3)));
}

#[test]
fn changes_reach_the_host_only_through_a_writable_share() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("shared")).unwrap();
    fs::write(path("kept"), "kept").unwrap();
    fs::write(path("shared/read"), "by the guest").unwrap();
    let (root, shared) = (directory.path().display(), path("shared"));
    let script = format!(
        "set -e; mount -o remount,rw / 2>/dev/null || true; echo lost >{root}/kept; cat {root}/kept; \
         cat /mnt/read; echo by the guest >/mnt/written; \
         if echo no >{root}/shared/read-only/x 2>/dev/null; then exit 9; fi"
    );
    fs::create_dir(path("shared/read-only")).unwrap();
    let output = run(&[
        "--share",
        &format!("{}:/mnt,rw", shared.display()),
        "--share",
        path("shared/read-only").to_str().unwrap(),
        "--",
        "sh",
        "-c",
        &script,
    ])
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "lost\nby the guest");
    assert_eq!(fs::read_to_string(path("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(path("shared/written")).unwrap(), "by the guest\n");
    assert!(!path("shared/read-only/x").exists());
}

#[test]
fn a_program_has_the_directory_user_and_environment_that_it_is_given() {
    let script = "pwd; id -u; echo \"$GIVEN $OWN $HIDDEN\"; test -w / && echo writable";
    let output = run(&["--user", "nobody", "--env", "GIVEN=a b", "--env", "OWN", "--"])
        .args(["sh", "-c", script])
        .env("OWN", "mine")
        .env("HIDDEN", "secret")
        .current_dir("/usr/share")
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "/usr/share\n65534\na b mine \n", "{}", text(&output.stderr));
}

#[test]
fn nothing_is_left_when_moat_is_killed() {
    let mut child = shell("echo up; sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 3]).unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().count();
    assert!(threads > 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!Path::new(&format!("/proc/{}", child.id())).exists());
}

#[test]
fn a_program_has_a_terminal_if_moat_has_one() {
    let moat = env!("CARGO_BIN_EXE_moat");
    let kernel = directory_of("debian-6.12-cloud");
    let inside = "tty; stty size; exit 5";
    let session =
        format!("stty rows 33 cols 101; exec {moat} run --kernel {kernel} -- sh -c '{inside}'");
    let mut script = Command::new("script");
    script.args(["-qec", &session, "/dev/null"]).stdin(Stdio::null());
    let output = script.output().unwrap();
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{printed}");
    for line in ["/dev/pts/0", "33 101"] {
        assert!(printed.contains(line), "{printed:?} should contain {line:?}");
    }
}
