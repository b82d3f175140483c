//! `moat pause` and `moat resume`.

use std::process::ExitCode;

use hyper::Method;
use vmm::MachineStatus;

use crate::arguments::PauseArguments;
use crate::client;
use crate::output::answer;
use crate::status::state_name;

/// Sends PUT for `path` of the API (`/pause` or `/resume`), and prints the machine's state after it.
pub fn run(arguments: &PauseArguments, path: &str) -> anyhow::Result<ExitCode> {
    let machine: MachineStatus =
        client::request(&arguments.api_socket, Method::PUT, path, None::<&()>)?;
    answer(state_name(machine.state))?;
    Ok(ExitCode::SUCCESS)
}
