//! `moat run`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use vmm::api::ApiServer;
use vmm::arch::x86_64::boot::BootProtocol;
use vmm::{
    Ending, Enforcement, Machine, MachineConfig, MachineControl, MachineError, OnReset,
    SerialEndpoint, VirtioTransport,
};

use crate::arguments::{Enforce, Protocol, ResetAction, RunArguments, Transport};
use crate::messages::tell;
use crate::{console, signals, streams};

pub fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    ensure!(
        arguments.serial2.as_ref() != Some(&arguments.serial),
        "--serial and --serial2 name the same target; give each serial port its own"
    );
    // Before anything that may take long: from here on a signal ends it, and so does Ctrl-A x.
    let control = MachineControl::default();
    let received = signals::attend(control.clone())?;
    let on_escape = || {
        let control = control.clone();
        Box::new(move || control.stop())
    };
    let (console, wired) = console::open(&arguments.serial, on_escape())?;
    let (agent, wired2) = match &arguments.serial2 {
        Some(target) => {
            let (endpoint, wired) = console::open(target, on_escape())?;
            (endpoint, Some(wired))
        }
        None => (SerialEndpoint::null(), None),
    };
    ensure!(
        !wired2.as_ref().is_some_and(|wired2| wired.shares_file_with(wired2)),
        "--serial and --serial2 name the same file; give each serial port its own"
    );
    let api_socket = arguments.api_socket.clone();
    let ending = match start(arguments, console, agent, &control) {
        Ok(machine) => {
            let _api = match &api_socket {
                Some(path) => {
                    let server = ApiServer::start(path, control.clone())?;
                    let path = path.display();
                    tell(format_args!("running; `moat status --api-socket {path}` shows it"));
                    Some(server)
                }
                None => None,
            };
            machine.wait()
        }
        Err(error) if is_stop(&error) => Ending::Stopped,
        Err(error) => return Err(error),
    };
    drop((wired, wired2));
    Ok(match received.number() {
        None => {
            if !matches!(ending, Ending::PowerOff | Ending::Stopped) {
                tell(&ending);
            }
            ExitCode::from(ending.exit_code())
        }
        Some(number) => {
            tell(format_args!("ended by signal {number}"));
            ExitCode::from(signals::exit_code(number))
        }
    })
}

/// Starts the machine, and says how far it is where that takes long.
fn start(
    arguments: RunArguments,
    console: SerialEndpoint,
    agent: SerialEndpoint,
    control: &MachineControl,
) -> anyhow::Result<Machine> {
    let initrd = match &arguments.initrd {
        Some(path) => read_initrd(path, arguments.memory.0, control)?,
        None => Vec::new(),
    };
    // Without PCI, Linux looks for some in vain, in thousands of places.
    let has_pci = matches!(arguments.transport, Transport::Pci) || !arguments.probe.is_empty();
    let cmdline = format!("console=ttyS0 panic=-1{}", if has_pci { "" } else { " pci=off" });
    let config = MachineConfig {
        vcpus: arguments.cpus,
        memory: arguments.memory.0,
        ram: arguments.memory_backing.0,
        kernel: arguments.kernel,
        protocol: match arguments.boot_protocol {
            Protocol::Auto => BootProtocol::Auto,
            Protocol::Linux64 => BootProtocol::Linux64,
            Protocol::Pvh => BootProtocol::Pvh,
        },
        initrd,
        cmdline: arguments.cmdline.unwrap_or(cmdline),
        symbols: arguments.symbols,
        virtio_transport: match arguments.transport {
            Transport::Mmio => VirtioTransport::Mmio,
            Transport::Pci => VirtioTransport::Pci,
        },
        memory_devices: arguments.virtio_mem.into_iter().map(|option| option.0).collect(),
        probes: arguments.probe.iter().map(|option| option.0).collect(),
        iommu: arguments.iommu.map(|option| option.0),
        enforcement: match arguments.enforce {
            Enforce::Strict => Enforcement::Strict,
            Enforce::Off => Enforcement::Off,
        },
        on_reset: match arguments.on_reset {
            ResetAction::End => OnReset::End,
            ResetAction::Restart => OnReset::Restart,
        },
        console,
        agent,
    };
    thread::scope(|scope| {
        let (started, has_started) = mpsc::channel::<()>();
        scope.spawn(move || report_progress(control, &has_started));
        let machine = Machine::start_with(config, control.clone());
        drop(started);
        Ok(machine?)
    })
}

/// Says now and then how much RAM has been taken from the host, until the machine has started.
fn report_progress(control: &MachineControl, has_started: &mpsc::Receiver<()>) {
    const INTERVAL: Duration = Duration::from_secs(2);
    const GIB: f64 = (1_u64 << 30) as f64;
    while has_started.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let (populated, all) = control.start_progress();
        if all > 0 {
            let [populated, all] = [populated, all].map(|bytes| bytes as f64 / GIB);
            tell(format_args!("preallocated {populated:.1} of {all:.1} GiB of RAM"));
        }
    }
}

/// Reads an initramfs, which may come through a pipe, and slowly.
fn read_initrd(path: &Path, memory: u64, control: &MachineControl) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("cannot read the initramfs {}", path.display());
    // A pipe that nobody writes to yet is waited for below, where a signal is heard.
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).with_context(failed)?;
    let mut initrd = Vec::new();
    loop {
        let length = streams::read_until_stopped(&file, &mut initrd, || control.is_stopped());
        match length.with_context(failed)? {
            None => return Err(MachineError::Stopped.into()),
            Some(0) => break,
            Some(_) if initrd.len() as u64 > memory => {
                bail!("{}: it has more bytes than the machine has memory", failed())
            }
            Some(_) => {}
        }
    }
    ensure!(!initrd.is_empty(), "{}: it is empty; leave --initrd out for none", failed());
    Ok(initrd)
}

/// Whether somebody has ended the machine while it started.
fn is_stop(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(MachineError::Stopped))
}
