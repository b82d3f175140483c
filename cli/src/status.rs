//! `moat status`.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use hyper::Method;
use vmm::MachineStatus;

use crate::arguments::StatusArguments;
use crate::client;
use crate::output::answer;
use crate::size::Size;

pub fn run(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let machine: MachineStatus =
        client::request(&arguments.api_socket, Method::GET, "/machine", None::<&()>)?;
    if arguments.json {
        answer(serde_json::to_string_pretty(&machine)?)?;
    } else {
        print_for_people(&machine)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_for_people(machine: &MachineStatus) -> std::io::Result<()> {
    answer(format_args!(
        "{} vCPUs, {} of RAM, {} memory slots",
        machine.vcpus,
        Size(machine.memory),
        machine.memory_slots
    ))?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "device",
        "region at",
        "size",
        "block",
        "requested",
        "plugged",
        "touched unplugged",
    ]);
    for device in &machine.memory_devices {
        let violations = device.violations;
        table.add_row([
            device.id.clone(),
            format!("{:#x}", device.address),
            Size(device.size).to_string(),
            Size(device.block_size).to_string(),
            Size(device.requested).to_string(),
            Size(device.plugged).to_string(),
            format!(
                "{} reads, {} writes, {} DMA",
                violations.reads, violations.writes, violations.dma
            ),
        ]);
    }
    answer(table)
}
