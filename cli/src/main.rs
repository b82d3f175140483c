//! The `moat` command: arguments in, words and exit codes out. All else is in `vmm` and `lab`.

mod arguments;
mod check;
mod client;
mod console;
mod doctor;
mod launch;
mod messages;
mod output;
mod pause;
mod resize;
mod run;
mod settings;
mod signals;
mod status;
mod streams;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use env_logger::WriteStyle;

use arguments::{Arguments, Command};
use messages::{LogTarget, tell};
use output::reasons;

/// The exit code when a command cannot do what it was asked to. (2 is clap's, for wrong usage.)
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // virtio-queue logs what a guest does wrong, as often as the guest does it: we count instead.
    // What the guests of `moat check` do wrong is its report.
    let filter = match arguments.command {
        Command::Check(_) => "error,virtio_queue=off",
        _ => "warn,virtio_queue=off",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter))
        .format_target(false)
        .write_style(WriteStyle::Never)
        .target(env_logger::Target::Pipe(Box::new(LogTarget)))
        .init();
    if let Err(error) = messages::start() {
        tell(format_args!("cannot start a thread: {error}"));
        return ExitCode::from(FAILURE);
    }
    let result = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Resize(arguments) => resize::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Pause(arguments) => pause::run(&arguments, "/pause"),
        Command::Resume(arguments) => pause::run(&arguments, "/resume"),
        Command::Check(arguments) => check::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    let code = result.unwrap_or_else(|error| {
        tell(reasons(&error));
        ExitCode::from(FAILURE)
    });
    messages::flush();
    code
}
