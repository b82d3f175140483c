//! `moat doctor`.

use std::process::ExitCode;

use crate::arguments::DoctorArguments;
use crate::output::answer;

pub fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let diagnosis = vmm::doctor::examine();
    if arguments.json {
        answer(serde_json::to_string_pretty(&diagnosis)?)?;
    } else {
        answer(&diagnosis.reason)?;
    }
    Ok(if diagnosis.usable { ExitCode::SUCCESS } else { ExitCode::from(crate::FAILURE) })
}
