//! A running machine's console on terminals, pipes, files and sockets, and signals to it.

mod support;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use support::GIB;
use support::command::{Fixture, moat};

const POWER_OFF: (u16, u8) = (0x600, 0x34);
/// First address of the first virtio-mem device's region, where nothing is plugged.
const UNPLUGGED: u64 = 4 * GIB;

fn driven(arguments: &[&str]) -> Command {
    let mut command = moat(&Fixture::DRIVEN);
    command.args(arguments);
    command
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn read_all(mut source: impl Read) -> String {
    let mut text = String::new();
    source.read_to_string(&mut text).unwrap();
    text
}

/// Makes a file non-blocking, or blocking again, for every process that has it open.
fn set_non_blocking(file: &OwnedFd, non_blocking: bool) {
    let mut flags = fcntl_getfl(file).unwrap();
    flags.set(OFlags::NONBLOCK, non_blocking);
    fcntl_setfl(file, flags).unwrap();
}

#[test]
fn a_non_blocking_pipe_gets_every_byte() {
    let fixture = Fixture::new();
    let (reader, writer) = io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    set_non_blocking(&writer, true);
    let mut command = driven(&[]);
    let (child, mut program) = fixture.drive(command.stdout(writer).stderr(Stdio::piped()));
    drop(command);
    // More than there is room for in a pipe.
    let text: Vec<u8> = (0..200_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    program.print(&text);
    program.out_and_end(POWER_OFF.0, POWER_OFF.1);
    assert_eq!(read_all(reader).into_bytes(), text);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn unread_output_does_not_keep_a_machine_from_ending() {
    for signal in [Signal::TERM, Signal::INT] {
        let fixture = Fixture::new();
        let (_reader, writer) = io::pipe().unwrap();
        let (child, mut program) = fixture.drive(driven(&[]).stdout(writer).stderr(Stdio::piped()));
        program.print(&[b'x'; 100_000]);
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + signal.as_raw()));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(
            message.contains("bytes of the guest's output to standard output were lost"),
            "{message}"
        );
    }
}

#[test]
fn unread_messages_block_neither_guest_nor_api() {
    let fixture = Fixture::new();
    let (_reader, writer) = io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    set_non_blocking(&writer, true);
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    set_non_blocking(&writer, false);
    let mut command = driven(&["--api-socket", "api", "--serial", "file:/dev/null"]);
    let (mut child, mut program) = fixture.drive(command.stderr(writer));
    // The message about this access cannot be written.
    program.write(8, UNPLUGGED, 0);
    let mut status = moat(&["status", "--json", "--api-socket"]);
    // The API comes right after the machine.
    let status = loop {
        let status = status.arg(fixture.path("api")).output().unwrap();
        if status.status.success() {
            break status;
        }
    };
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["memory_devices"][0]["violations"]["writes"], 1);
    send(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_full_disk_is_reported_once_with_the_bytes_lost() {
    let fixture = Fixture::new();
    let mut command = driven(&["--serial", "file:/dev/full"]);
    let (child, mut program) = fixture.drive(command.stderr(Stdio::piped()));
    for _ in 0..3 {
        program.print(b"to nowhere\n");
    }
    program.out_and_end(POWER_OFF.0, POWER_OFF.1);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(message.matches("No space left on device").count(), 1, "{message}");
    assert!(message.contains("33 bytes of the guest's output to its file were lost"), "{message}");
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let fixture = Fixture::new();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' INT HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_moat")])
        .args(Fixture::DRIVEN)
        .args(["--serial", "file:/dev/null"])
        .stdin(Stdio::null());
    let (mut child, mut program) = fixture.drive(&mut command);
    send(&child, Signal::INT);
    send(&child, Signal::HUP);
    assert_eq!(program.read(1, 0xf_fff0), 0xba, "the machine goes on");
    send(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn every_signal_that_would_end_the_process_ends_the_machine() {
    for signal in [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM] {
        let fixture = Fixture::new();
        let mut command = driven(&["--serial", "file:/dev/null"]);
        let (mut child, _program) = fixture.drive(&mut command);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal.as_raw()));
        assert!(!fixture.path("agent").exists(), "{signal:?} leaves a socket");
        assert_eq!(fs::metadata(fixture.path("ram")).unwrap().len(), 0, "{signal:?}");
    }
}

fn make_fifo(fixture: &Fixture) -> PathBuf {
    let path = fixture.path("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

#[test]
fn a_signal_ends_a_machine_that_has_not_started() {
    let fixture = Fixture::new();
    make_fifo(&fixture);
    let mut waiting = fixture.run(&["--kernel", "kernel", "--initrd", "fifo"]).spawn().unwrap();
    // From here on it has handlers: without them the signal would end it, too.
    while !is_open(&waiting, "fifo") {
        thread::yield_now();
    }
    send(&waiting, Signal::TERM);
    assert_eq!(waiting.wait().unwrap().code(), Some(143));

    let backing = "backing=file:ram,prealloc=on";
    let arguments = ["--kernel", "kernel", "--memory", "3G", "--memory-backing", backing];
    let mut preallocating = fixture.run(&arguments).spawn().unwrap();
    let ram = fixture.path("ram");
    while !fs::metadata(&ram).is_ok_and(|file| file.len() > 0) {
        thread::yield_now();
    }
    send(&preallocating, Signal::TERM);
    assert_eq!(preallocating.wait().unwrap().code(), Some(143));
    assert_eq!(fs::metadata(&ram).unwrap().len(), 0);
}

/// Whether a process has a file of this name open.
fn is_open(child: &Child, name: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|path| path.ends_with(name))
}

#[test]
fn an_initramfs_may_come_through_a_pipe_and_a_kernel_may_not() {
    let fixture = Fixture::new();
    let fifo = make_fifo(&fixture);
    let output = fixture.run(&["--kernel", "fifo"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("fifo: it is a pipe; give a regular file"), "{message}");
    assert_eq!(output.status.code(), Some(1));

    let mut command = driven(&["--initrd", "fifo", "--serial", "file:/dev/null"]);
    let (mut child, program) = thread::scope(|scope| {
        let driven = scope.spawn(|| fixture.drive(&mut command));
        // When the other end is open.
        let mut writer = File::options().write(true).open(fifo).unwrap();
        writer.write_all(b"an initramfs").unwrap();
        drop(writer);
        driven.join().unwrap()
    });
    program.out_and_end(POWER_OFF.0, POWER_OFF.1);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Runs a script of bash's in a terminal, as a user at a shell would, and returns what comes out of the
/// terminal. `keys` are typed once moat says that it is running.
fn in_terminal(fixture: &Fixture, script: &str, keys: &[u8]) -> String {
    let moat = env!("CARGO_BIN_EXE_moat");
    let functions = format!(
        "set -m; moat() {{ {moat} \"$@\"; }}; before=$(stty -g); \
         same() {{ [ \"$before\" = \"$(stty -g)\" ] && echo same modes; }};"
    );
    fixture.write("script", format!("{functions}\n{script}\n"));
    let mut child = Command::new("timeout")
        .args(["60", "script", "--quiet", "--return", "--command", "bash script", "/dev/null"])
        .current_dir(fixture.directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: at its end script(1) would close the terminal's input.
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut output = String::new();
    if !keys.is_empty() {
        while !output.contains("running;") {
            assert_ne!(stdout.read_line(&mut output).unwrap(), 0, "{output}");
        }
        stdin.write_all(keys).unwrap();
    }
    stdout.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    output
}

#[test]
fn a_background_job_runs_to_its_end_and_leaves_the_terminal_alone() {
    let fixture = Fixture::new();
    // A kernel that does nothing: the API's socket shows that the machine has started.
    let output = in_terminal(
        &fixture,
        "moat run --kernel kernel --boot-protocol pvh --api-socket api & job=$!
         until [ -S api ]; do :; done
         same
         kill $job; wait $job; echo ended by $?
         same",
        b"",
    );
    assert_eq!(output.matches("same modes").count(), 2, "{output}");
    assert!(output.contains("ended by 143"), "{output}");
}

#[test]
fn a_job_that_comes_to_the_foreground_takes_the_terminal() {
    let fixture = Fixture::new();
    let output = in_terminal(
        &fixture,
        "moat run --kernel kernel --boot-protocol pvh --api-socket api &
         until [ -S api ]; do :; done
         same
         # From the background: until the foreground has other modes.
         (while same >/dev/null; do :; done; pkill -TERM -n -x moat) &
         fg %1; echo ended by $?
         same",
        b"",
    );
    assert_eq!(output.matches("same modes").count(), 2, "{output}");
    assert!(output.contains("ended by 143"), "{output}");
}

#[test]
fn the_terminal_is_as_it_was_after_any_signal() {
    for (signal, code) in
        [("TERM", 143), ("QUIT", 131), ("USR1", 138), ("ABRT", 134), ("SEGV", 139)]
    {
        let fixture = Fixture::new();
        let output = in_terminal(
            &fixture,
            &format!(
                "ulimit -c 0
                 (while same >/dev/null; do :; done; pkill -{signal} -n -x moat) &
                 moat run --kernel kernel --boot-protocol pvh; echo ended by $?
                 same"
            ),
            b"",
        );
        assert!(output.contains(&format!("ended by {code}")), "{signal}: {output}");
        assert!(output.contains("same modes"), "{signal}: {output}");
    }
}

#[test]
fn ctrl_a_x_ends_a_guest_that_reads_no_keys() {
    let fixture = Fixture::new();
    let mut keys = vec![b'k'; 200_000];
    keys.extend(b"\x01x");
    let script =
        "moat run --kernel kernel --boot-protocol pvh --api-socket api; echo ended by $?; same";
    let output = in_terminal(&fixture, script, &keys);
    assert!(output.contains("ended by 0"), "{output}");
    assert!(output.contains("same modes"), "{output}");
}

#[test]
fn a_console_socket_is_private_and_a_stale_one_is_replaced() {
    let fixture = Fixture::new();
    for _ in 0..2 {
        let mut command = driven(&["--serial", "unix:console"]);
        let (mut child, mut program) = fixture.drive(&mut command);
        let metadata = fs::metadata(fixture.path("console")).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        program.print(b"hello");
        let mut client = UnixStream::connect(fixture.path("console")).unwrap();
        let mut hello = [0; 5];
        client.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        child.kill().unwrap();
        child.wait().unwrap();
        // A killed machine leaves its memory's file too.
        fs::remove_file(fixture.path("ram")).unwrap();
    }
}

#[test]
fn an_api_that_had_no_descriptors_left_recovers() {
    let fixture = Fixture::new();
    let running = fixture.start(&[]);
    let descriptors = format!("/proc/{}/fd", running.child.as_ref().unwrap().id());
    let used = fs::read_dir(descriptors).unwrap().count();
    running.end(Signal::TERM);

    let limited = format!("ulimit -n {}; exec \"$0\" \"$@\"", used + 3);
    let mut command = Command::new("sh");
    command
        .args(["-c", &limited, env!("CARGO_BIN_EXE_moat"), "run", "--serial", "file:/dev/null"])
        .args(["--kernel", "kernel", "--api-socket", "api"]);
    let running = fixture.start_as(&mut command);
    let clients: Vec<_> =
        (0..12).map(|_| UnixStream::connect(fixture.path("api")).unwrap()).collect();
    drop(clients);
    assert!(running.moat("status", &[]).status.success());
    assert_eq!(running.end(Signal::TERM).status.code(), Some(143));
}

#[test]
fn two_ports_cannot_write_to_the_same_file() {
    let fixture = Fixture::new();
    fixture.write("log", "");
    fs::hard_link(fixture.path("log"), fixture.path("link")).unwrap();
    let mut command = moat(&["run", "--kernel", "kernel", "--serial", "file:log"]);
    let output = command.args(["--serial2", "file:link"]).current_dir(fixture.directory.path());
    let output = output.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("name the same file"), "{message}");
}
