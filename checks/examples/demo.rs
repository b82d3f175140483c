//! What scripts/demo shows: a guest gets memory and gives it back, and no program in it may access that
//! memory; then all checks. Arguments: directories of guest kernels, the first for the first part.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use checks::report::{KernelRecord, Report, Verdict};
use checks::runner::{self, Progress, Settings};
use checks::suites;
use testvm::guest::{Errno, Observe, OpenFlags, Protection, Sharing};
use testvm::kernel::GuestKernel;
use testvm::vm::{ADDED_MEMORY, BUS, DRIVER, Vm, VmConfig, VmError, Vmm};
use vmm::{MemoryDeviceConfig, VirtioTransport};

type AnyError = Box<dyn std::error::Error>;

const MIB: u64 = 1 << 20;
const GROWN: u64 = 1024 * MIB;

fn main() -> ExitCode {
    let kernels: Result<Vec<_>, _> =
        std::env::args().skip(1).map(|path| GuestKernel::open(Path::new(&path))).collect();
    match kernels.map_err(AnyError::from).and_then(|kernels| show(&kernels)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(kernels: &[GuestKernel]) -> Result<bool, AnyError> {
    let first = kernels.first().ok_or("name at least one directory of a guest kernel")?;
    host()?;
    grow_and_shrink(first)?;
    checks(kernels)
}

fn host() -> io::Result<()> {
    let emulated = std::env::var_os("MOAT_KVM_HOST").is_some_and(|host| host == "emulated");
    let what = if emulated { "an emulated host, for want of a usable KVM" } else { "this machine" };
    let mut out = io::stdout();
    writeln!(out, "host      {what}: {}", vmm::doctor::examine().reason)
}

/// A guest gets a GiB and gives it back.
fn grow_and_shrink(kernel: &GuestKernel) -> Result<(), AnyError> {
    let mut out = io::stdout();
    let vm = Vm::boot(&VmConfig {
        parameters: "memhp_default_state=online_movable".to_owned(),
        virtio_transport: VirtioTransport::Pci,
        memory_devices: vec![MemoryDeviceConfig::new(GROWN)],
        ..VmConfig::linux(Vmm::Moat, kernel, &[BUS, DRIVER])?
    })
    .map_err(|trouble| trouble.error)?;
    writeln!(out, "guest     Linux {}, 1 vCPU, 512 MiB", vm.guest.kernel_release())?;
    let region = vm.region();
    writeln!(
        out,
        "device    virtio-mem, {:#x}-{:#x}, nothing plugged",
        region.start,
        region.end - 1
    )?;
    let counters = || {
        vm.counters()
            .ok_or(VmError::Absent("counters: its monitor does not count accesses and requests"))
    };
    let show = |when: &str| -> Result<(), AnyError> {
        let mut out = io::stdout();
        let total = vm.guest.meminfo()?.total() / MIB;
        let added = vm.guest.iomem()?.size_of(ADDED_MEMORY) / MIB;
        let requests = counters()?.requests;
        writeln!(
            out,
            "{when:<10}MemTotal {total:>4} MiB, of it {added:>4} from the device; \
             {:>3} PLUG and {:>3} UNPLUG requests so far",
            requests.plug, requests.unplug
        )?;
        Ok(())
    };
    let process = vm.guest.spawn()?;
    let dev_mem = process.open("/dev/mem", OpenFlags::RDWR)?;
    let map = || dev_mem.mmap(region.start, 4096, Protection::Read, Sharing::Shared).outcome();
    show("before")?;
    writeln!(out, "/dev/mem  before the driver owns the region, mmap of it: {}", allowed(&map()?))?;
    vm.start_driver()?;
    let before = vm.guest.meminfo()?.total();
    vm.resize(GROWN)?;
    // /proc/iomem has it first.
    vm.wait_until("the memory is online", || Ok(vm.guest.meminfo()?.total() >= before + GROWN))?;
    show("grown")?;
    writeln!(out, "/dev/mem  mmap of a plugged page: {}", allowed(&map()?))?;
    vm.resize(0)?;
    show("shrunk")?;
    writeln!(out, "/dev/mem  mmap of the same page, unplugged: {}", allowed(&map()?))?;
    let violations = counters()?.violations;
    writeln!(
        out,
        "host saw  {} reads and {} writes of unplugged memory\n",
        violations.reads, violations.writes
    )?;
    Ok(vm.power_off()?)
}

fn allowed<T>(outcome: &testvm::guest::Outcome<T>) -> &'static str {
    match outcome.denial() {
        None => "allowed",
        Some(denial) if denial == Errno::EPERM.into() => "refused, EPERM",
        Some(_) => "refused",
    }
}

/// The series of scenario ids, and what each is about.
const SERIES: [(&str, &str); 4] = [
    ("VM", "virtio-mem: the region is its driver's, plugged or not"),
    ("P", "PCI: a BAR that a driver claims is unmapped everywhere else"),
    ("F", "VFIO: a BAR that is not decoded cannot be accessed"),
    ("G", "IOMMU groups: owned by the kernel or by user space, never by both"),
];

/// Every scenario on every kernel: a line for each series, and which did not pass.
fn checks(kernels: &[GuestKernel]) -> Result<bool, AnyError> {
    let mut out = io::stdout();
    let scenarios = suites::select(&[])?;
    let settings = Settings { vmm: Vmm::Moat, vcpus: 1 };
    let progress = |progress: Progress<'_>| {
        if let Progress::Booting(kernel, _, profile, _) = progress {
            let _ = writeln!(io::stderr(), "demo: {}: {profile} guest", kernel.release());
        }
    };
    let run = |kernel| runner::run(kernel, &scenarios, settings, &progress);
    let report = Report { lacking: vec![], kernels: kernels.iter().map(run).collect() };
    for kernel in &report.kernels {
        writeln!(out, "checks    Linux {}", kernel.release)?;
        for (series, title) in SERIES {
            let about = kernel.scenarios.iter().filter(|one| is_about(one.scenario.id, series));
            let (passed, other): (Vec<_>, Vec<_>) =
                about.partition(|one| one.verdict(&[]) == Verdict::Passed);
            let all = passed.len() + other.len();
            writeln!(out, "  {series:<6}  {:>2} of {all:>2}  {title}", passed.len())?;
        }
        for (reason, ids) in shortfalls(kernel) {
            writeln!(out, "          {}: {reason}", ids.join(" "))?;
        }
    }
    let totals = report.totals();
    writeln!(
        out,
        "\n{} passed, {} failed, {} known gaps, {} skipped; `moat check` shows what was tried and \
         observed",
        totals.passed, totals.failed, totals.known_gaps, totals.skipped
    )?;
    Ok(report.holds())
}

fn is_about(id: &str, series: &str) -> bool {
    id.trim_end_matches(|character: char| character.is_ascii_digit()) == series
}

/// Scenarios that did not pass, by the reason.
fn shortfalls(kernel: &KernelRecord) -> BTreeMap<String, Vec<&'static str>> {
    let mut by_reason: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for one in &kernel.scenarios {
        let reason = match one.verdict(&[]) {
            Verdict::Passed => continue,
            Verdict::KnownGap => "a gap that every kernel has".to_owned(),
            verdict => one.reason(&[]).unwrap_or_else(|| verdict.to_string()),
        };
        by_reason.entry(reason).or_default().push(one.scenario.id);
    }
    by_reason
}
