//! `moat check`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use comfy_table::{Table, presets};
use lab::kernel::GuestKernel;
use lab::report::{
    Comparison, Difference, KernelReport, Kind, Observation, Protection, Report,
    ScenarioComparison, ScenarioReport, TroubledGuest, Unfinished, Verdict,
};
use lab::runner::{self, Progress, Settings};
use lab::scenarios::{self, Boot, CATALOGUE, Scenario};
use lab::vm::{Accelerator, Iommu, Special, Vmm};

use crate::arguments::{CheckArguments, CheckedVmm, ExpectWithout};
use crate::output::answer;

pub fn run(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        print_list()?;
        return Ok(ExitCode::SUCCESS);
    }
    let scenarios = scenarios::select(&arguments.only)?;
    let kernels = open_kernels(arguments)?;
    let vmms = vmms(arguments)?;
    let lacking: Vec<_> = arguments.expect_without.iter().map(|&it| protection(it)).collect();
    let start = Instant::now();
    let mut report = Report::default();
    for kernel in &kernels {
        for &vmm in &vmms {
            let settings = Settings { vmm, vcpus: arguments.cpus, lacking: &lacking };
            let told = runner::run(kernel, &scenarios, settings, &|progress| tell(progress, start));
            report.kernels.push(told);
        }
    }
    if arguments.json {
        answer(serde_json::to_string_pretty(&report)?)?;
    } else {
        print_for_people(&report)?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(crate::FAILURE) })
}

/// What runs the guests. moat needs KVM; QEMU says what it does without.
fn vmms(arguments: &CheckArguments) -> anyhow::Result<Vec<Vmm>> {
    let diagnosis = vmm::doctor::examine();
    let accelerator = if diagnosis.usable { Accelerator::Kvm } else { Accelerator::Tcg };
    let mut vmms = Vec::new();
    for asked in &arguments.vmm {
        let vmm = match asked {
            CheckedVmm::Moat if diagnosis.usable => Vmm::Moat,
            CheckedVmm::Moat => bail!(
                "{}; `moat doctor` examines KVM, scripts/kvm-host runs a command where it works, and \
                 --vmm qemu does without",
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

fn protection(lacking: ExpectWithout) -> Protection {
    match lacking {
        ExpectWithout::IoStrictDevmem => Protection::IoStrictDevmem,
        ExpectWithout::PciRevocation => Protection::PciRevocation,
        ExpectWithout::ExclusiveRegion => Protection::ExclusiveRegion,
        ExpectWithout::VfioMemoryCheck => Protection::VfioMemoryCheck,
        ExpectWithout::VfioZap => Protection::VfioZap,
        ExpectWithout::VfioPowerCheck => Protection::VfioPowerCheck,
        ExpectWithout::GroupOwnership => Protection::GroupOwnership,
        ExpectWithout::GroupClaim => Protection::GroupClaim,
    }
}

/// Directories as scripts/guest-kernel makes them, and images.
fn open_kernels(arguments: &CheckArguments) -> anyhow::Result<Vec<GuestKernel>> {
    let modules = arguments.modules.as_deref();
    if modules.is_some() && arguments.kernel.iter().all(|path| path.is_dir()) {
        bail!("--modules is for a bzImage; a kernel directory has its modules in it");
    }
    let open = |path: &PathBuf| match path.is_dir() {
        true => GuestKernel::open(path),
        false => GuestKernel::from_image(path, modules),
    };
    arguments.kernel.iter().map(|path| open(path).map_err(Into::into)).collect()
}

fn print_list() -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for Scenario { id, title, .. } in CATALOGUE {
        table.add_row([id, title]);
    }
    answer(table)
}

/// Progress goes where it is in nobody's way.
fn tell(progress: Progress, start: Instant) {
    let seconds = start.elapsed().as_secs();
    match progress {
        Progress::Booting(kernel, vmm, boot, scenarios) => {
            let ids: Vec<_> = scenarios.iter().map(|scenario| scenario.id).collect();
            let (release, guest) = (kernel.release(), boot.name());
            let _ = writeln!(
                io::stderr(),
                "{seconds:4} s  {release} on {vmm}: {guest} guest ({boot}): {}",
                ids.join(" ")
            );
        }
        Progress::Told(scenario, Verdict::Failed) => {
            let _ = writeln!(io::stderr(), "{seconds:4} s  {} failed", scenario.id);
        }
        Progress::Told(..) => {}
    }
}

fn print_for_people(report: &Report) -> io::Result<()> {
    for kernel in &report.kernels {
        print_kernel(kernel)?;
    }
    for comparison in report.comparisons() {
        print_comparison(&comparison)?;
    }
    let totals = report.totals();
    answer(format_args!(
        "{} passed, {} failed, {} known gaps of the kernel, {} skipped{}",
        totals.passed,
        totals.failed,
        totals.known_gaps,
        totals.skipped,
        match totals.not_asked {
            0 => String::new(),
            not_asked => format!(", {not_asked} not asked, for a guest did not boot"),
        }
    ))
}

fn print_kernel(kernel: &KernelReport) -> io::Result<()> {
    answer(format_args!("Linux {} on {}, {}", kernel.release, kernel.vmm, kernel.image.display()))?;
    for boot in kernel.boots() {
        let behind = match boot.special() {
            Special::Iommu => format!(", behind {}", kernel.vmm.iommu()),
            Special::None | Special::LargeBar => String::new(),
        };
        answer(format_args!("  {} guest: {boot}{behind}", boot.name()))?;
    }
    answer(format_args!("\n{}\n", table(kernel)))?;
    for (why, scenarios) in unfinished(kernel) {
        answer(format_args!("{} {why}", scenarios.join(" ")))?;
    }
    for guest in &kernel.troubled_guests {
        let TroubledGuest { boot, error, console } = guest;
        answer(format_args!(
            "\nThe console of the {} guest ({error}) ended with\n{console}",
            boot.name()
        ))?;
    }
    println!();
    Ok(())
}

fn table(kernel: &KernelReport) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["scenario", "guest", "tried", "expected", "observed", "verdict"]);
    for report in &kernel.scenarios {
        table.add_row(heading(report));
        table.add_rows(report.observations.iter().map(|observed| row(report.scenario, observed)));
    }
    table
}

fn heading(report: &ScenarioReport) -> [&'static str; 6] {
    [report.scenario.id, "", report.scenario.title, "", "", word(report.verdict())]
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "FAILED",
        Verdict::KnownGap => "known gap",
        Verdict::Skipped => "skipped",
        Verdict::NotAsked => "not asked",
    }
}

fn print_comparison(comparison: &Comparison) -> io::Result<()> {
    let [one, other] = comparison.vmms.map(Vmm::name);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["scenario", one, other, "compared", ""]);
    for ScenarioComparison { id, verdicts, compared, differences } in &comparison.scenarios {
        let agreement = match (compared, differences.as_slice()) {
            (0, _) => "not comparable",
            (_, []) => "agree",
            _ => "DIFFER",
        };
        let [one, other] = verdicts.map(word);
        table.add_row([id, one, other, &compared.to_string(), agreement]);
    }
    answer(format_args!("Linux {}, {one} and {other}\n\n{table}\n", comparison.release))?;
    for scenario in &comparison.scenarios {
        for Difference { boot, tried, observed: [ours, theirs] } in &scenario.differences {
            let guest = boot.map(Boot::name).unwrap_or_default();
            let id = scenario.id;
            answer(format_args!("{id}, {guest} guest, {tried}: {one} {ours}, {other} {theirs}"))?;
        }
    }
    Ok(())
}

fn row(scenario: &Scenario, observation: &Observation) -> [String; 6] {
    let kind = match observation.kind {
        Kind::Check => "",
        Kind::Control => "control: ",
        Kind::UnprotectedControl => "control, unprotected kernel: ",
        Kind::KnownGap => "known gap of the kernel: ",
        Kind::Unasked => "not asked: ",
    };
    [
        scenario.id.to_owned(),
        observation.boot.map(Boot::name).unwrap_or_default().to_owned(),
        format!("  {kind}{}", observation.tried),
        observation.expected.to_string(),
        observation.observed.to_string(),
        match observation.kind {
            Kind::KnownGap => "known gap",
            Kind::Unasked => "",
            _ if observation.holds => "ok",
            _ => "FAILED",
        }
        .to_owned(),
    ]
}

/// Why scenarios were not told to their end, each reason once, with those scenarios.
fn unfinished(kernel: &KernelReport) -> Vec<(String, Vec<&'static str>)> {
    let mut reasons: Vec<(String, Vec<&'static str>)> = Vec::new();
    for report in &kernel.scenarios {
        let why = match &report.unfinished {
            None => continue,
            Some(Unfinished::Skipped(why)) => format!("skipped: {why}"),
            Some(Unfinished::Failed(why)) => format!("FAILED: {why}"),
            Some(Unfinished::NotAsked(why)) => format!("not asked: {why}"),
        };
        match reasons.iter_mut().find(|(reason, _)| *reason == why) {
            Some((_, scenarios)) => scenarios.push(report.scenario.id),
            None => reasons.push((why, vec![report.scenario.id])),
        }
    }
    reasons
}
