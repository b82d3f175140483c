//! The `moat` command: it parses arguments, prints text and returns exit codes. Everything else is in `vmm`,
//! `launch` and `checks`.

mod arguments;
mod check;
mod client;
mod console;
mod doctor;
mod kernel;
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

use std::env;
use std::process::ExitCode;

use ::launch::NOT_LAUNCHED;
use clap::Parser;
use env_logger::WriteStyle;

use arguments::{Arguments, Command};
use messages::{LogTarget, print_message};
use output::reasons;

/// The exit code when a command cannot do what it was asked to. (2 is clap's, for wrong usage.)
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // The program that was to be run could have clap's status too.
        Err(error) if error.use_stderr() && names_a_program() => {
            // There is nothing to do about a closed standard error.
            let _ = error.print();
            return ExitCode::from(NOT_LAUNCHED);
        }
        Err(error) => error.exit(),
    };
    // virtio-queue logs every mistake of a guest, without a limit: moat counts them instead. `moat check`
    // makes its guests do such things on purpose, and reports them itself.
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
        print_message(format_args!("cannot start a thread: {error}"));
        return ExitCode::from(FAILURE);
    }
    let result = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Resize(arguments) => resize::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Pause(arguments) => pause::run(&arguments, "/pause"),
        Command::Resume(arguments) => pause::run(&arguments, "/resume"),
        Command::Check(arguments) => check::run(&arguments),
        Command::Kernel(command) => kernel::run(&command),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    let code = result.unwrap_or_else(|error| {
        print_message(reasons(&error));
        ExitCode::from(FAILURE)
    });
    messages::flush();
    code
}

/// Whether the arguments, though they are wrong, ask for a program in a guest.
fn names_a_program() -> bool {
    let mut arguments = env::args_os().skip(1);
    arguments.next().is_some_and(|command| command == "run")
        && arguments.any(|argument| argument == "--" || argument == "--script")
}
