//! `moat run`.

use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ::launch::NOT_LAUNCHED;
use anyhow::ensure;
use vmm::api::ApiServer;
use vmm::threads::{self, Role};
use vmm::{Ending, Machine, MachineControl, MachineError, MachineIo, MachineSpec, SerialEndpoint};

use crate::arguments::{RunArguments, SerialTarget};
use crate::messages::print_message;
use crate::output::reasons;
use crate::{console, kernel, launch, signals};

pub fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    if arguments.has_program() {
        // Not the usual status of a failure, for the program could have it too.
        return Ok(launch::run(arguments).unwrap_or_else(|error| {
            print_message(reasons(&error));
            ExitCode::from(NOT_LAUNCHED)
        }));
    }
    let serial = arguments.serial.clone().unwrap_or(SerialTarget::Tty);
    ensure!(
        arguments.serial2.as_ref() != Some(&serial),
        "--serial and --serial2 name the same target; give each serial port its own"
    );
    let mut spec = arguments.spec();
    spec.kernel = kernel::find_image(&spec.kernel)?;
    // First, since what follows may take long: from here on a signal ends the machine, and so does Ctrl-A x.
    let control = MachineControl::default();
    let received = signals::attend(control.clone())?;
    let on_escape = || {
        let control = control.clone();
        Box::new(move || control.stop())
    };
    let (console, wired) = console::open(&serial, on_escape())?;
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
    let io = MachineIo { console, agent, ..MachineIo::default() };
    let ending = match start(spec, io, &control) {
        Ok(machine) => {
            let _api = match &arguments.api_socket {
                Some(path) => {
                    let server = ApiServer::start(path, control.clone())?;
                    let path = path.display();
                    print_message(format_args!(
                        "running; `moat status --api-socket {path}` shows it"
                    ));
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
    if let Some(code) = received.report() {
        return Ok(code);
    }
    if !matches!(ending, Ending::PowerOff | Ending::Stopped) {
        print_message(&ending);
    }
    Ok(ExitCode::from(ending.exit_code()))
}

/// Starts the machine, and prints progress if that takes long.
fn start(spec: MachineSpec, io: MachineIo, control: &MachineControl) -> anyhow::Result<Machine> {
    thread::scope(|scope| {
        let (started, has_started) = mpsc::channel::<()>();
        threads::spawn_scoped(scope, Role::Progress, move || {
            report_progress(control, &has_started);
        })?;
        let machine = Machine::start_with(spec, io, control.clone());
        drop(started);
        Ok(machine?)
    })
}

/// Prints every 2 seconds how much RAM has been preallocated, until the machine has started.
fn report_progress(control: &MachineControl, has_started: &mpsc::Receiver<()>) {
    const INTERVAL: Duration = Duration::from_secs(2);
    const GIB: f64 = (1_u64 << 30) as f64;
    while has_started.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let (populated, all) = control.start_progress();
        if all > 0 {
            let [populated, all] = [populated, all].map(|bytes| bytes as f64 / GIB);
            print_message(format_args!("preallocated {populated:.1} of {all:.1} GiB of RAM"));
        }
    }
}

/// Whether a signal or Ctrl-A x ended the machine while it started.
fn is_stop(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(MachineError::Stopped))
}
