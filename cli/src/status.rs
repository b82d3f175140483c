//! `moat status`.

use std::cmp::Reverse;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use hyper::Method;
use vmm::Size;
use vmm::machine::{IommuStatus, PciStatus, RunState};
use vmm::violations::refusals::Chain;
use vmm::violations::{Offender, Violation};
use vmm::{MachineStatus, MemoryDeviceStatus};

use crate::arguments::StatusArguments;
use crate::client;
use crate::output::answer;

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
        "{}: {} vCPUs, {} of RAM, {} memory slots",
        state_name(machine.state),
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
        "unplugged accessed",
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
    answer(table)?;
    let of_memory = machine.memory_devices.iter().flat_map(|device| &device.offenders);
    let of_pci = machine.pci.iter().flat_map(|pci| &pci.offenders);
    print_offenders(&of_memory.chain(of_pci).collect::<Vec<_>>())?;
    print_refused_devices(&machine.memory_devices)?;
    machine.pci.as_ref().map_or(Ok(()), print_pci)?;
    machine.iommu.as_ref().map_or(Ok(()), print_iommu)
}

/// A state as commands print it.
pub fn state_name(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Ended => "ended",
    }
}

/// Prints the offenders, most frequent first.
fn print_offenders(offenders: &[&Offender]) -> std::io::Result<()> {
    if offenders.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "offender",
        "mode",
        "instruction",
        "did",
        "of",
        "times",
    ]);
    let mut offenders = offenders.to_vec();
    offenders.sort_by_key(|offender| Reverse(offender.count));
    for Offender { count, latest, .. } in offenders {
        let Violation { device, accessor, access, target, .. } = latest;
        let place = format!("{:#x}", accessor.instruction_pointer);
        table.add_row([
            accessor.symbol.clone().unwrap_or(place),
            accessor.privilege.to_string(),
            accessor.instruction.clone().unwrap_or_default(),
            format!("{} {} at {:#x}", access.operation, access.size, access.address),
            format!("{device}: {target}"),
            count.to_string(),
        ]);
    }
    answer(format_args!("\n{table}"))
}

/// Prints the devices that refused to access unplugged blocks.
fn print_refused_devices(memory_devices: &[MemoryDeviceStatus]) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "refused device",
        "working on",
        "at",
        "of",
        "times",
    ]);
    for device in memory_devices {
        for refused in &device.refused_devices {
            table.add_row([
                refused.device.clone(),
                refused.chain.map_or_else(String::new, |Chain { queue, descriptor }| {
                    format!("queue {queue}, descriptor {descriptor}")
                }),
                format!("{:#x}, {} bytes", refused.address, refused.size),
                format!("{}: unplugged block {}", device.id, refused.block),
                refused.count.to_string(),
            ]);
        }
    }
    if table.is_empty() { Ok(()) } else { answer(format_args!("\n{table}")) }
}

fn print_iommu(iommu: &IommuStatus) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["endpoint", "domain", "refused DMA"]);
    for endpoint in &iommu.endpoints {
        table.add_row([
            format!("{:#x}", endpoint.id),
            endpoint.domain.map_or("none".into(), |domain| domain.to_string()),
            endpoint.faults.to_string(),
        ]);
    }
    let bypass = if iommu.bypass { "bypass it" } else { "reach no memory" };
    answer(format_args!(
        "\nIOMMU: {} mappings; endpoints without a domain {bypass}\n{table}",
        iommu.mappings
    ))
}

fn print_pci(pci: &PciStatus) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "function",
        "id",
        "decodes",
        "reads",
        "writes",
        "resets",
        "undecoded accessed",
    ]);
    for function in &pci.functions {
        let decoded =
            function.ranges.iter().filter(|range| range.enabled).map(|range| {
                format!("{} {:#x}+{}", range.register, range.address, Size(range.size))
            });
        let decoded: Vec<String> = decoded.collect();
        table.add_row([
            function.address.clone(),
            format!("{:04x}:{:04x}", function.vendor, function.device),
            if decoded.is_empty() { "nothing".into() } else { decoded.join("\n") },
            function.counters.reads.to_string(),
            function.counters.writes.to_string(),
            function.counters.resets.to_string(),
            function.counters.refused.to_string(),
        ]);
    }
    answer(format_args!("\n{table}"))
}
