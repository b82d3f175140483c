//! `moat run -- COMMAND`: what programs do with the host's files and with a terminal, and what is left.

mod support;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, geteuid, getpid, set_child_subreaper, waitid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::launch::{KERNELS, directory_of, run, run_on, shell, text};
use support::linux::{emulated, kernel};
use support::rounds;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Counts the bytes that `yes` has written.
fn count_yes(mut from: impl Read) -> u64 {
    let (mut count, mut buffer) = (0, vec![0; MIB as usize]);
    loop {
        let length = from.read(&mut buffer).unwrap();
        if length == 0 {
            return count;
        }
        let expected = if count % 2 == 0 { *b"y\n" } else { *b"\ny" };
        for pair in buffer[..length].chunks(2) {
            assert!(expected.starts_with(pair), "{}", text(&buffer[..length.min(1000)]));
        }
        count += length as u64;
    }
}

/// What a shell's script prints on this machine.
fn here(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A C project in a repository, of which one file has been changed since.
fn make_project(directory: &Path) {
    fs::write(directory.join("Makefile"), "hello: hello.c\n\tcc -o $@ $<\n").unwrap();
    fs::write(directory.join("hello.c"), "int main(void) { return 0; }\n").unwrap();
    let git = "git -c user.name=moat -c user.email=moat@localhost";
    let commit = format!("git init -q . && git add . && {git} commit -q -m first");
    here(&format!("cd {} && {commit}", directory.display()));
    let program = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 3; }\n";
    fs::write(directory.join("hello.c"), program).unwrap();
}

const TAR: &str = "cd /usr/share; tar -c perl5 | wc -c; \
                   find perl5 -type f | LC_ALL=C sort | xargs cat | sha256sum";
const PROJECT: &str = "cd /project; git status --porcelain; make -s 2>/dev/null; ./hello || echo $?; \
                       git status --porcelain; git commit -qam second; git log --oneline | wc -l";

/// What the program above prints, on any machine.
const PROJECT_PRINTS: &str = " M hello.c\nhello\n3\n M hello.c\n?? hello\n2\n";

/// One boot of each kernel, in which programs use files, streams and the loopback interface.
///
/// MOAT_TEST_OUTPUT_MIB sets how many MiB go through each of standard output and error.
#[test]
fn programs_work_on_every_kernel() {
    let mib = rounds("MOAT_TEST_OUTPUT_MIB", 4);
    let tar = here(TAR);
    for (index, name) in KERNELS.into_iter().enumerate() {
        let project = TempDir::new().unwrap();
        make_project(project.path());
        // On one kernel: a compiler takes an emulated host more than a minute.
        let has_project = index == 0;
        let then = if has_project { PROJECT } else { "true" };
        let script = format!(
            "set -e; export GIT_AUTHOR_NAME=moat GIT_AUTHOR_EMAIL=moat@localhost \
             GIT_COMMITTER_NAME=moat GIT_COMMITTER_EMAIL=moat@localhost; \
             uname -r; {TAR}; cat /sys/class/net/lo/flags; {then}; echo END; \
             cat; yes | head -c {mib}M >&2; yes | head -c {mib}M; exit 7"
        );
        let share = format!("{}:/project,rw", project.path().display());
        let mut command = run_on(name, &["--share", &share, "--", "sh", "-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let sent: Vec<u8> = (0..3_u32 << 20).map(|n| (n ^ n >> 8) as u8).collect();
        let (mut stdin, to_send) = (child.stdin.take().unwrap(), sent.clone());
        let sender = thread::spawn(move || stdin.write_all(&to_send).unwrap());
        let stderr = child.stderr.take().unwrap();
        let errors = thread::spawn(|| count_yes(stderr));
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.ends_with("END\n") {
            if output.read_line(&mut printed).unwrap() == 0 {
                panic!("{name} printed {printed:?}, and {:?}", errors.join());
            }
        }
        let project_prints = if has_project { PROJECT_PRINTS } else { "" };
        // The interface is up, and a loopback interface.
        let flags = "0x9";
        let release = kernel(name).release().to_owned();
        assert_eq!(printed, format!("{release}\n{tar}{flags}\n{project_prints}END\n"), "{name}");
        let mut echo = vec![0; sent.len()];
        output.read_exact(&mut echo).unwrap();
        assert!(echo == sent, "{name}");
        assert_eq!(count_yes(output), mib * MIB, "{name}");
        assert_eq!(errors.join().unwrap(), mib * MIB, "{name}");
        sender.join().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7), "{name}");
        if has_project {
            let status = Command::new(project.path().join("hello")).status().unwrap();
            assert_eq!(status.code(), Some(3), "what {name} made");
            let inside =
                format!("cd {}; git fsck 2>/dev/null; git status -s", project.path().display());
            assert_eq!(here(&inside), "?? hello\n");
        }
    }
}

#[test]
fn changes_reach_the_host_only_through_a_writable_share() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("shared")).unwrap();
    fs::write(path("kept"), "kept").unwrap();
    fs::write(path("shared/read"), "by the guest").unwrap();
    let (root, shared) = (directory.path().display(), path("shared"));
    // Then the root itself, without the layer over it: the guest's kernel lets it be written to.
    let script = format!(
        "set -e; mount -o remount,rw / 2>/dev/null || true; echo lost >{root}/kept; cat {root}/kept; \
         cat /mnt/read; echo by the guest >/mnt/written; \
         if echo no >{root}/shared/read-only/x 2>/dev/null; then exit 9; fi; \
         mkdir /raw; mount -t virtiofs root /raw; mount -o remount,rw /raw; \
         grep -q ' /raw virtiofs rw' /proc/mounts; \
         if echo lost 2>/dev/null >/raw{root}/kept; then exit 10; fi; \
         if rm /raw{root}/kept 2>/dev/null; then exit 11; fi; \
         touch /mnt/mine; setpriv --reuid 65534 --regid 65534 --clear-groups touch /mnt/nobodys"
    );
    fs::create_dir(path("shared/read-only")).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let output = run(&[
        "--user",
        "root",
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
    assert!(output.status.success(), "{:?} {}", output.status, text(&output.stderr));
    assert_eq!(text(&output.stdout), "lost\nby the guest");
    assert_eq!(fs::read_to_string(path("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(path("shared/written")).unwrap(), "by the guest\n");
    assert!(!path("shared/read-only/x").exists());
    // Where moat is root, as in the guest; else they are its user's.
    let own = geteuid().as_raw();
    let nobodys = if own == 0 { 65534 } else { own };
    for (name, owner) in [("mine", own), ("nobodys", nobodys)] {
        assert_eq!(fs::metadata(path("shared").join(name)).unwrap().uid(), owner, "{name}");
    }
}

/// A file system that fills up, a file that vanishes, and a directory that is moved away.
#[test]
fn what_goes_wrong_on_the_host_is_an_error_in_the_guest() {
    let host = TempDir::new().unwrap();
    let path = |name: &str| host.path().join(name);
    for name in ["small", "shared", "shared/directory"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("shared/file"), "still open\n").unwrap();
    fs::write(path("shared/directory/below"), "below\n").unwrap();
    // What is gone may be remembered for a second.
    let script = "set -e; cd /small; \
        if head -c 4M /dev/zero >big 2>/tmp/error; then exit 9; fi; grep 'No space left' /tmp/error; \
        rm big; echo small >small; cat small; \
        if mkdir $(seq 30) 2>/tmp/error; then exit 10; fi; \
        grep -o -m 1 'No space left' /tmp/error; \
        cd /shared/directory; exec 3</shared/file; echo ready; read go; \
        while test -e /shared/file -o -e /shared/directory; do :; done; cat <&3; \
        if cat /shared/file 2>&1; then exit 11; fi; \
        if ls /shared/directory/ 2>&1; then exit 12; fi; \
        if cat ../file 2>/dev/null; then exit 13; fi; \
        touch below || true; echo fine";
    let mount = "mount -t tmpfs -o size=1M,nr_inodes=20 small \"$0\" && exec \"$@\"";
    // A mount of its own, for which users other than root need a user namespace of their own.
    let mut command = Command::new("unshare");
    command.arg("--mount").args((!geteuid().is_root()).then_some("--map-root-user"));
    command.args(["sh", "-c", mount]).arg(path("small")).arg(env!("CARGO_BIN_EXE_moat"));
    command.args(["run", "--kernel"]).arg(directory_of("protected"));
    for name in ["small", "shared"] {
        command.arg("--share").arg(format!("{}:/{name},rw", path(name).display()));
    }
    command.args(["--timeout", "200", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    while !printed.ends_with("ready\n") {
        assert_ne!(output.read_line(&mut printed).unwrap(), 0, "{printed}");
    }
    fs::remove_file(path("shared/file")).unwrap();
    fs::rename(path("shared/directory"), path("moved")).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    output.read_to_string(&mut printed).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{printed}");
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines[0].contains("No space left on device"), "{printed}");
    assert_eq!(lines[1..5], ["small", "No space left", "ready", "still open"]);
    assert_eq!(lines.last(), Some(&"fine"));
    for line in &lines[5..lines.len() - 1] {
        assert!(line.contains("No such file") || line.contains("Stale"), "{printed}");
    }
}

/// moat on a terminal, and a person at it.
struct Session {
    child: Child,
    keys: File,
    screen: BufReader<File>,
    seen: String,
}

impl Session {
    fn start(command: &Command, [rows, columns]: [u16; 2]) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs: OwnedFd = File::options().read(true).write(true).open(&path).unwrap().into();
        // It becomes the controlling terminal of a session of its own.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.env("TERM", "dumb").stdin(theirs.try_clone().unwrap());
        session.stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let keys = File::from(ours);
        set_size(&keys, rows, columns);
        let screen = BufReader::new(keys.try_clone().unwrap());
        Self { child: session.spawn().unwrap(), keys, screen, seen: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this has been printed since the last time.
    fn wait_for(&mut self, what: &str) {
        while !self.seen.contains(what) {
            let mut byte = [0];
            if let Err(error) = self.screen.read_exact(&mut byte) {
                panic!("it ended ({error}) without {what:?}: {:?}", self.seen);
            }
            self.seen.push(byte[0] as char);
        }
        self.seen.clear();
    }

    fn end(mut self) -> Option<i32> {
        // A terminal that nothing has open any more reads as EIO.
        let _ = io::copy(&mut self.screen, &mut io::sink());
        self.child.wait().unwrap().code()
    }
}

fn set_size(terminal: &File, ws_row: u16, ws_col: u16) {
    tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

#[test]
fn a_shell_on_a_terminal_has_job_control_and_a_window() {
    for name in ["protected", "debian-6.1-cloud"] {
        let bash = [
            "--timeout",
            "300",
            "--env",
            "PS1=ready> ",
            "--",
            "bash",
            "--norc",
            "--noprofile",
            "-i",
        ];
        let mut session = Session::start(&run_on(name, &bash), [33, 101]);
        session.wait_for("ready> ");
        session.press("tty; stty size\r");
        session.wait_for("/dev/pts/0\r\n33 101\r\nready> ");
        session.press("trap 'echo win''dow' WINCH\r");
        session.wait_for("ready> ");
        set_size(&session.keys, 50, 120);
        session.press("until [ \"$(stty size)\" = '50 120' ]; do :; done; echo resi''zed\r");
        session.wait_for("window\r\n");
        session.wait_for("resized\r\nready> ");
        // Ctrl-Z stops the program, and Ctrl-C ends it.
        session.press(
            "sh -c 'trap \"echo contin\"ued CONT; echo run\"ning\"; while :; do sleep 1; done'\r",
        );
        session.wait_for("running\r\n");
        session.press("\x1a");
        session.wait_for("Stopped");
        session.wait_for("ready> ");
        session.press("fg\r");
        session.wait_for("continued\r\n");
        session.press("\x03");
        session.wait_for("ready> ");
        session.press("echo sta''tus $?\r");
        session.wait_for("status 130\r\n");
        session.press("exit 5\r");
        assert_eq!(session.end(), Some(5), "{name}");
    }
}

#[test]
fn ctrl_c_ends_the_program_and_ctrl_a_x_the_guest() {
    for (keys, status) in [("\x03", 130), ("\x01x", 246)] {
        let script = "echo run''ning; exec sleep 1000";
        let command = run(&["--timeout", "100", "--", "sh", "-c", script]);
        let mut session = Session::start(&command, [24, 80]);
        session.wait_for("running\r\n");
        session.press(keys);
        assert_eq!(session.end(), Some(status));
    }
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

/// Memory of programs, shared memory and kernel objects, in KiB (proc(5)).
fn memory_in_use() -> u64 {
    let fields = ["AnonPages:", "Shmem:", "SUnreclaim:"];
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let sizes = info.lines().filter_map(|line| {
        let (name, size) = line.split_once(' ')?;
        fields.contains(&name).then(|| size.trim().split(' ').next()?.parse::<u64>().ok())?
    });
    sizes.sum()
}

/// MOAT_TEST_LAUNCHES sets how many, four at once.
#[test]
fn many_launches_leave_nothing_behind() {
    const AT_ONCE: u64 = 4;
    let launches = rounds("MOAT_TEST_LAUNCHES", 8);
    let directory = TempDir::new().unwrap();
    // What a process leaves behind becomes this one's child.
    set_child_subreaper(Some(getpid())).unwrap();
    let launch = |number: u64| {
        let script = format!("echo {number}; exit {}", number % 100);
        let mut command = shell(&script);
        command.current_dir(directory.path());
        for variable in ["TMPDIR", "XDG_RUNTIME_DIR", "HOME"] {
            command.env(variable, directory.path());
        }
        let output = command.output().unwrap();
        let printed = (text(&output.stdout), text(&output.stderr));
        assert_eq!(printed, (format!("{number}\n"), String::new()));
        assert_eq!(output.status.code(), Some((number % 100) as i32));
    };
    launch(0);
    let before = memory_in_use();
    let next = AtomicU64::new(1);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                for number in std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)))
                    .take_while(|number| *number <= launches)
                {
                    launch(number);
                }
            });
        }
    });
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    assert_eq!(waitid(WaitId::All, options).err(), Some(Errno::CHILD));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    for place in ["/tmp", "/run", "/dev/shm"] {
        let names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> =
            names.filter(|name| text(name.as_encoded_bytes()).contains("moat")).collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
    // Elsewhere other programs use memory too.
    if emulated() {
        let grown = memory_in_use().saturating_sub(before);
        println!("{launches} launches, {grown} KiB more in use than before");
        assert!(grown < 16 << 10, "{grown} KiB");
    }
}
