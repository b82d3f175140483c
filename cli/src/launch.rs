//! `moat run -- COMMAND`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;

use agent_protocol::{Credentials, WindowSize};
use anyhow::{Context, bail, ensure};
use launch::{Launch, Outcome, Root, Streams, Terminal};
use rustix::process::{getgid, getgroups, getuid};
use rustix::stdio;
use rustix::termios::{isatty, tcgetwinsize};
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;
use testvm::kernel::GuestKernel;
use testvm::vm::Console;
use vmm::api::ApiServer;
use vmm::threads::{self, Role};
use vmm::{MachineControl, MachineIo, SerialEndpoint};

use crate::arguments::{ProgramArguments, RunArguments, SerialTarget};
use crate::messages::print_message;
use crate::streams::Unbuffered;
use crate::terminal::Newlines;
use crate::{console, kernel, signals, terminal};

/// Variables that are passed on to a program unless `--env` sets them.
const ENVIRONMENT: [&str; 9] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LC_ALL", "TZ"];

pub fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    ensure!(
        arguments.serial != Some(SerialTarget::Tty),
        "--serial tty: the terminal is the program's; use file:PATH or unix:PATH"
    );
    ensure!(
        arguments.serial2.is_none(),
        "--serial2: nothing in the guest uses a second serial port when a program is run"
    );
    // First, since nothing holds up a signal until there is a machine to end.
    let ProgramArguments { modules, .. } = &arguments.program;
    let kernel = kernel::find(arguments.kernel.as_deref(), modules.as_deref())?;
    let control = MachineControl::default();
    let received = signals::attend(control.clone())?;
    let kept = Console::default();
    let mut tee = Tee { kept: kept.clone(), copy: None };
    let wired = match &arguments.serial {
        Some(target) => {
            let (endpoint, wired) = console::open(target, Box::new(|| {}))?;
            tee.copy = Some(endpoint.output);
            Some(wired)
        }
        None => None,
    };
    let io = MachineIo {
        console: SerialEndpoint { name: "the console", input: None, output: Box::new(tee) },
        ..MachineIo::default()
    };
    let has_terminal =
        isatty(stdio::stdin()) && isatty(stdio::stdout()) && !arguments.program.script;
    let launch = launch(arguments, kernel, has_terminal)?;
    let _api = match &arguments.api_socket {
        Some(path) => Some(ApiServer::start(path, control.clone())?),
        None => None,
    };
    let (streams, raw) = open_streams(has_terminal, control.clone())?;
    let outcome = launch.run(streams, io, &kept, control)?;
    drop((wired, raw));
    if let Some(code) = received.report() {
        return Ok(code);
    }
    print_outcome(&outcome, &kept);
    Ok(ExitCode::from(outcome.exit_status()))
}

/// Prints why the program did not run to its end, or that an exit status which moat also uses is its own.
fn print_outcome(outcome: &Outcome, console: &Console) {
    if let Outcome::Failed(failure) = outcome {
        print_message(failure);
        let text = console.text();
        if failure.concerns_the_guest() && !text.is_blank() {
            print_message(format_args!("the guest's console ended with\n{}", text.tail()));
        }
    } else if outcome.is_ambiguous() {
        print_message(format_args!(
            "the program itself exited with status {}",
            outcome.exit_status()
        ));
    }
}

fn launch(
    arguments: &RunArguments,
    kernel: GuestKernel,
    has_terminal: bool,
) -> anyhow::Result<Launch> {
    let ProgramArguments { root, file, cwd, user, boot_timeout, timeout, .. } = &arguments.program;
    let root = root
        .canonicalize()
        .with_context(|| format!("cannot use {} as the guest's root", root.display()))?;
    let directory = match cwd {
        Some(directory) => directory.clone(),
        None if root == Path::new("/") && file.is_empty() => {
            env::current_dir().context("cannot get the current directory; name one with --cwd")?
        }
        None => PathBuf::from("/"),
    };
    Ok(Launch {
        kernel,
        spec: arguments.spec(),
        shares: arguments.program.share.clone(),
        command: command(&arguments.program),
        environment: environment(&arguments.program.env)?,
        directory: directory.into_os_string().into_vec(),
        credentials: match user {
            Some(user) => credentials_of(user, &root)?,
            None => own_credentials()?,
        },
        terminal: if has_terminal { Some(open_terminal()?) } else { None },
        host_name: "moat".to_owned(),
        boot_timeout: *boot_timeout,
        timeout: *timeout,
        root: if file.is_empty() { Root::Directory(root) } else { Root::Files(file.clone()) },
    })
}

fn command(program: &ProgramArguments) -> Vec<Vec<u8>> {
    let bytes = |text: &OsString| text.clone().into_vec();
    match program.command.as_slice() {
        [] if program.script => vec![b"/bin/sh".to_vec()],
        [] => vec![env::var_os("SHELL").map_or(b"/bin/sh".to_vec(), OsString::into_vec)],
        command => command.iter().map(bytes).collect(),
    }
}

fn environment(asked: &[OsString]) -> anyhow::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let own = |name: &OsStr| Some((name.as_bytes().to_vec(), env::var_os(name)?.into_vec()));
    let mut environment: Vec<_> =
        ENVIRONMENT.into_iter().filter_map(|name| own(OsStr::new(name))).collect();
    for variable in asked {
        let bytes = variable.as_bytes();
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(0) => bail!("--env {}: expected NAME or NAME=VALUE", variable.display()),
            Some(at) => (bytes[..at].to_vec(), bytes[at + 1..].to_vec()),
            None => own(variable).with_context(|| {
                let name = variable.display();
                format!("--env {name}: moat has no such variable; give a value: {name}=VALUE")
            })?,
        };
        environment.retain(|(known, _)| *known != name);
        environment.push((name, value));
    }
    Ok(environment)
}

fn own_credentials() -> anyhow::Result<Credentials> {
    let groups = getgroups().context("cannot get this process's groups")?;
    Ok(Credentials {
        user: getuid().as_raw(),
        group: getgid().as_raw(),
        groups: groups.into_iter().map(|group| group.as_raw()).collect(),
    })
}

/// A user by name or number, from the etc/passwd and etc/group of the guest's root.
fn credentials_of(user: &str, root: &Path) -> anyhow::Result<Credentials> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let passwd = read("etc/passwd");
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| matches!(fields[..], [name, _, id, _, ..] if name == user || id == user));
    let number = |field: &str| field.parse::<u32>().ok();
    match entry.as_deref() {
        Some([name, _, id, group, ..]) => {
            let is_member = |line: &&str| {
                line.rsplit(':')
                    .next()
                    .is_some_and(|members| members.split(',').any(|it| it == *name))
            };
            let group_file = read("etc/group");
            let groups = group_file.lines().filter(is_member);
            let groups = groups.filter_map(|line| number(line.split(':').nth(2)?)).collect();
            match (number(id), number(group)) {
                (Some(user), Some(group)) => Ok(Credentials { user, group, groups }),
                _ => {
                    bail!(
                        "--user {user}: its line in {} has no user and group numbers",
                        root.join("etc/passwd").display()
                    )
                }
            }
        }
        _ => match number(user) {
            Some(id) => Ok(Credentials { user: id, group: id, groups: Vec::new() }),
            None => bail!(
                "--user {user}: there is no such user in {}",
                root.join("etc/passwd").display()
            ),
        },
    }
}

/// This terminal's size, now and whenever it changes.
fn open_terminal() -> anyhow::Result<Terminal> {
    let (sender, resizes) = mpsc::channel();
    let mut signals = Signals::new([SIGWINCH]).context("cannot watch the terminal's size")?;
    threads::spawn(Role::ProgramTerminal, move || {
        for _ in signals.forever() {
            if sender.send(window_size()).is_err() {
                break;
            }
        }
    })?;
    Ok(Terminal { size: window_size(), resizes })
}

fn window_size() -> WindowSize {
    // Some terminals do not report a size: 80x24 is the usual one.
    tcgetwinsize(stdio::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0).map_or(
        WindowSize { rows: 24, columns: 80 },
        |size| WindowSize { rows: size.ws_row, columns: size.ws_col },
    )
}

/// Standard input, output and error. The terminal is in raw mode until the second value is dropped.
fn open_streams(
    has_terminal: bool,
    control: MachineControl,
) -> anyhow::Result<(Streams, Option<console::Terminal>)> {
    let (output, errors) =
        (Box::new(Unbuffered(stdio::stdout())), Box::new(Unbuffered(stdio::stderr())));
    if !has_terminal {
        let input = Box::new(Unbuffered(stdio::stdin()));
        return Ok((Streams { input, output, errors }, None));
    }
    terminal::attach(Newlines::Untouched)?;
    let input: Box<dyn Read + Send> =
        Box::new(console::read_keys(Box::new(move || control.stop()))?);
    Ok((Streams { input, output, errors }, Some(console::Terminal)))
}

/// Keeps a console, and copies it if there is somewhere to.
struct Tee {
    kept: Console,
    copy: Option<Box<dyn Write + Send>>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.copy {
            Some(copy) => copy.write(bytes)?,
            None => bytes.len(),
        };
        self.kept.write(&bytes[..written])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.copy.as_mut().map_or(Ok(()), Write::flush)
    }
}
