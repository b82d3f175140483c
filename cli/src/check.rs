//! `moat check`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use checks::framework::{Mitigation, Scenario};
use checks::report::{Report, Verdict};
use checks::runner::{self, Progress, Settings};
use checks::suites;
use comfy_table::{Table, presets};
use testvm::vm::{Accelerator, Iommu, Vmm};

use crate::arguments::{CheckArguments, CheckedVmm, ReportFormat};
use crate::kernel;
use crate::output::answer;

pub fn run(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        print_list()?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = match &arguments.judge {
        Some(path) => Report { lacking: arguments.expect_without.clone(), ..read_report(path)? },
        None => check_kernels(arguments)?,
    };
    if let Some(directory) = &arguments.report {
        write_report(&report, directory, &arguments.kcidb_origin)?;
    }
    let format = if arguments.json { ReportFormat::Json } else { arguments.format };
    answer(text(&report, format, &arguments.kcidb_origin).trim_end())?;
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(crate::FAILURE) })
}

fn text(report: &Report, format: ReportFormat, kcidb_origin: &str) -> String {
    match format {
        ReportFormat::Table => report.to_string(),
        ReportFormat::Json => report.to_json(),
        ReportFormat::Ktap => report.to_ktap(),
        ReportFormat::Junit => report.to_junit(),
        ReportFormat::Kcidb => report.to_kcidb(kcidb_origin),
        ReportFormat::Github => report.to_github_summary(),
        ReportFormat::Html => report.to_html(),
    }
}

/// Writes the report in every format.
fn write_report(report: &Report, directory: &Path, kcidb_origin: &str) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    for (name, format) in [
        ("report.txt", ReportFormat::Table),
        ("report.json", ReportFormat::Json),
        ("report.ktap", ReportFormat::Ktap),
        ("junit.xml", ReportFormat::Junit),
        ("kcidb.json", ReportFormat::Kcidb),
        ("summary.md", ReportFormat::Github),
        ("index.html", ReportFormat::Html),
    ] {
        let path = directory.join(name);
        let text = text(report, format, kcidb_origin);
        fs::write(&path, format!("{}\n", text.trim_end()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn check_kernels(arguments: &CheckArguments) -> anyhow::Result<Report> {
    let scenarios = suites::select(&arguments.only)?;
    let find = |asked: &PathBuf| kernel::find(Some(asked), arguments.modules.as_deref());
    let kernels: Vec<_> = arguments.kernel.iter().map(find).collect::<Result<_, _>>()?;
    let vmms = vmms(arguments)?;
    let start = Instant::now();
    let mut report = Report { lacking: arguments.expect_without.clone(), kernels: Vec::new() };
    for kernel in &kernels {
        for &vmm in &vmms {
            let settings = Settings { vmm, vcpus: arguments.cpus };
            let show = |progress: Progress| show(progress, &arguments.expect_without, start);
            report.kernels.push(runner::run(kernel, &scenarios, settings, &show));
        }
    }
    Ok(report)
}

fn read_report(path: &Path) -> anyhow::Result<Report> {
    let json = fs::read_to_string(path)
        .with_context(|| format!("cannot read the report {}", path.display()))?;
    Report::from_json(&json)
        .with_context(|| format!("{} is not a report of moat check --json", path.display()))
}

/// The monitors. moat needs KVM; QEMU emulates the processor without, and a message says so.
fn vmms(arguments: &CheckArguments) -> anyhow::Result<Vec<Vmm>> {
    let diagnosis = vmm::doctor::examine();
    let accelerator = if diagnosis.usable { Accelerator::Kvm } else { Accelerator::Tcg };
    let mut vmms = Vec::new();
    for asked in &arguments.vmm {
        let vmm = match asked {
            CheckedVmm::Moat if diagnosis.usable => Vmm::Moat,
            CheckedVmm::Moat => bail!(
                "{}; `moat doctor` reports what is wrong with KVM here, and --vmm qemu checks the kernel \
                 on QEMU, which emulates a processor where KVM is not usable",
                diagnosis.reason
            ),
            CheckedVmm::Qemu => Vmm::Qemu(accelerator, Iommu::Virtio),
            CheckedVmm::QemuIntelIommu => Vmm::Qemu(accelerator, Iommu::Intel),
        };
        if vmm != Vmm::Moat {
            let (name, reason) = (accelerator.name(), &diagnosis.reason);
            let _ = writeln!(io::stderr(), "QEMU runs guests with -accel {name}: {reason}");
        }
        vmms.push(vmm);
    }
    Ok(vmms)
}

fn print_list() -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for Scenario { id, title, .. } in suites::catalogue().iter().copied() {
        table.add_row([id, title]);
    }
    answer(table)
}

/// Prints progress on standard error, apart from the report.
fn show(progress: Progress, lacking: &[Mitigation], start: Instant) {
    let seconds = start.elapsed().as_secs();
    match progress {
        Progress::Booting(kernel, vmm, profile, scenarios) => {
            let ids: Vec<_> = scenarios.iter().map(|scenario| scenario.id).collect();
            let _ = writeln!(
                io::stderr(),
                "{seconds:4} s  {} on {vmm}: {profile} guest ({}): {}",
                kernel.release(),
                profile.summary(),
                ids.join(" ")
            );
        }
        Progress::Finished(record) if record.verdict(lacking) == Verdict::Failed => {
            let _ = writeln!(io::stderr(), "{seconds:4} s  {} failed", record.scenario.id);
        }
        Progress::Finished(_) => {}
    }
}
