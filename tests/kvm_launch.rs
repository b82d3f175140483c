//! `moat run -- COMMAND`: programs on the host's files, their streams and their exit statuses.

mod support;

use std::io::{Read, Write};
use std::process::{Output, Stdio};
use std::thread;

use support::launch::{KERNELS, assert_fails, run, run_on, shell, text};
use support::linux::kernel;

#[test]
fn a_program_runs_on_every_kernel_and_each_transport() {
    for (name, transport) in KERNELS.into_iter().zip(["mmio", "pci", "pci", "mmio", "pci"]) {
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
    assert_fails(&mut shell("exit 242"), 242, &["the program itself exited with status 242"]);
}

/// The end of the console, which shows more than the line before it.
const CONSOLE: &str = "the guest's console ended with\n";

#[test]
fn a_program_that_cannot_be_started_has_the_statuses_of_a_shell() {
    assert_fails(&mut run(&["--", "no-such-program"]), 127, &["there is no program"]);
    assert_fails(&mut run(&["--", "/etc/passwd"]), 126, &["cannot start the program"]);
    assert_fails(&mut run(&["--cwd", "/no/such", "--", "true"]), 126, &["working directory"]);
}

#[test]
fn a_panic_is_240_before_the_program_and_during_it() {
    let during = "echo c >/proc/sysrq-trigger";
    let mut during = run(&["--user", "root", "--", "sh", "-c", during]);
    assert_fails(&mut during, 240, &["kernel panicked", CONSOLE, "sysrq_handle_crash"]);
    let before = "console=ttyS0 panic=-1 rdinit=/none";
    let mut before = run(&["--cmdline", before, "--", "true"]);
    assert_fails(&mut before, 240, &["kernel panicked", CONSOLE, "Unable to mount root fs"]);
}

#[test]
fn a_guest_that_does_not_get_to_the_program_in_time_is_241() {
    assert_fails(&mut run(&["--boot-timeout", "0", "--", "true"]), 241, &["within 0 s"]);
    let waiting = "console=ttyS0 panic=-1 rdinit=/none root=/dev/none rootwait";
    let mut waiting = run(&["--boot-timeout", "10", "--cmdline", waiting, "--", "true"]);
    assert_fails(&mut waiting, 241, &["within 10 s", CONSOLE, "Waiting for root device"]);
}

#[test]
fn a_program_that_runs_for_too_long_is_242() {
    assert_fails(&mut run(&["--timeout", "1", "--", "sleep", "1000"]), 242, &["longer than 1 s"]);
}

#[test]
fn a_guest_that_cannot_run_programs_is_243() {
    let share = ["--share", "/etc:/etc/passwd/below", "--", "true"];
    assert_fails(&mut run(&share), 243, &["cannot make the directory /etc/passwd/below"]);
}

#[test]
fn a_guest_that_ends_before_the_program_is_244() {
    for (key, how) in [('o', "powered off"), ('b', "reset")] {
        let script = format!("echo {key} >/proc/sysrq-trigger; sleep 1000");
        let mut script = run(&["--user", "root", "--", "sh", "-c", &script]);
        assert_fails(&mut script, 244, &["before the program had ended", how]);
    }
    // It has nothing by which it could report why.
    let cmdline = "console=ttyS0 panic=-1 quiet module_blacklist=overlay";
    let mut without = run(&["--cmdline", cmdline, "--", "true"]);
    assert_fails(&mut without, 244, &[CONSOLE, "agent: cannot load module overlay"]);
}

#[test]
fn what_cannot_be_started_is_245() {
    let reason = |arguments: &[&str], reason| assert_fails(&mut run(arguments), 245, &[reason]);
    reason(&["--root", "/no/such", "--", "true"], "/no/such");
    reason(&["--share", "/no/such", "--", "true"], "cannot share /no/such");
    reason(&["--share", "/etc:mnt", "--", "true"], "expected an absolute path");
    reason(&["--user", "nobody-there", "--", "true"], "no such user");
    reason(&["--env", "=x", "--", "true"], "expected NAME or NAME=VALUE");
    reason(&["--serial", "tty", "--", "true"], "the terminal is the program's");
    reason(&["--initrd", "x", "--", "true"], "cannot be used with");
    reason(&["--no-such-option", "--", "true"], "unexpected argument");
    let shares = (0..10).flat_map(|n| ["--share".to_owned(), format!("/etc:/mnt/{n}")]);
    let many = "11 shared directories, the root among them: virtio-mmio has interrupts for 10";
    assert_fails(run(&[]).args(shares).args(["--", "true"]), 245, &[many]);
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
