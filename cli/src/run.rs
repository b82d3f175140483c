//! `moat run`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm::api::ApiServer;
use vmm::boot::BootProtocol;
use vmm::{
    Ending, Enforcement, Machine, MachineConfig, MachineControl, OnReset, SerialEndpoint,
    VirtioTransport,
};

use crate::arguments::{Enforce, Protocol, ResetAction, RunArguments, Transport};
use crate::console;
use crate::output::tell;

pub fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    ensure!(
        arguments.serial2.as_ref() != Some(&arguments.serial),
        "--serial and --serial2 name the same target; give each serial port its own"
    );
    let initrd = match &arguments.initrd {
        Some(path) => {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => Vec::new(),
    };
    // What ends the machine from outside, once there is one.
    let control: Arc<OnceLock<MachineControl>> = Arc::default();
    let on_escape = || {
        let control = Arc::clone(&control);
        Box::new(move || {
            if let Some(control) = control.get() {
                control.stop();
            }
        })
    };
    let (console, wired) = console::open(&arguments.serial, on_escape())?;
    let (agent, wired2) = match &arguments.serial2 {
        Some(target) => {
            let (endpoint, wired) = console::open(target, on_escape())?;
            (endpoint, Some(wired))
        }
        None => (SerialEndpoint::null(), None),
    };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let machine = Machine::start(MachineConfig {
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
        cmdline: arguments.cmdline,
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
    })?;
    let control = control.get_or_init(|| machine.control()).clone();
    let api = match &arguments.api_socket {
        Some(path) => {
            let server = ApiServer::start(path, control.clone())?;
            tell(format_args!("running; `moat status --api-socket {}` shows it", path.display()));
            Some(server)
        }
        None => None,
    };
    let signal = Arc::new(AtomicI32::new(0));
    let received = Arc::clone(&signal);
    std::thread::spawn(move || {
        for number in signals.forever() {
            received.store(number, Ordering::Relaxed);
            control.stop();
        }
    });
    let ending = machine.wait();
    drop(api);
    drop((wired, wired2));
    match signal.load(Ordering::Relaxed) {
        0 => {
            if ending != Ending::PowerOff {
                tell(&ending);
            }
            Ok(ExitCode::from(ending.exit_code()))
        }
        number => {
            tell(format_args!("ended by signal {number}"));
            Ok(ExitCode::from(128 + number as u8))
        }
    }
}
