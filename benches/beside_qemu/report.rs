//! Medians, ratios, and the host that they were measured on.

use std::{collections::BTreeMap, fmt, fs, process::Command};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use testvm::vm::QEMU;

use crate::monitor::Monitor;

/// A quantity that is measured; less is better.
#[derive(Clone, Copy)]
pub struct Figure {
    name: &'static str,
    unit: Unit,
    remark: Remark,
}

/// What else is derived from a figure's median.
#[derive(Clone, Copy)]
enum Remark {
    Nothing,
    /// Requests per second, and bytes per second with this many bytes a request.
    Rate {
        bytes: u64,
    },
    /// The ratio to another figure of the same VMM, by its name.
    Times(&'static str),
}

impl Figure {
    pub const fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, remark: Remark::Nothing }
    }

    /// The time of a request about so many bytes.
    pub const fn request(name: &'static str, bytes: u64) -> Self {
        Self { name, unit: Unit::Microseconds, remark: Remark::Rate { bytes } }
    }

    /// To be compared with another figure too.
    pub const fn beside(self, other: &Self) -> Self {
        Self { remark: Remark::Times(other.name), ..self }
    }
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Seconds,
    Microseconds,
    Mebibytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.3}"),
            Self::Microseconds => format!("{value:.1}"),
            Self::Mebibytes => format!("{value:.1}"),
        }
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Microseconds => "µs",
            Self::Mebibytes => "MiB",
        }
    }
}

/// Whether scripts/kvm-host has emulated this host.
pub fn host_is_emulated() -> bool {
    std::env::var("MOAT_KVM_HOST").is_ok_and(|kind| kind == "emulated")
}

/// All that was measured.
#[derive(Serialize)]
pub struct Report {
    host: Host,
    guest_kernel: String,
    runs: usize,
    figures: Vec<Row>,
}

#[derive(Serialize)]
struct Host {
    processor: String,
    processors: usize,
    kernel: String,
    emulated: bool,
    qemu: String,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    unit: Unit,
    #[serde(skip)]
    remark: Remark,
    samples: BTreeMap<&'static str, Samples>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case", untagged)]
enum Samples {
    Taken(Vec<f64>),
    NotSupported(String),
}

impl Report {
    /// A report about this host, without figures yet.
    pub fn new(guest_kernel: &str, runs: usize) -> anyhow::Result<Self> {
        let version = Command::new(QEMU).arg("--version").output();
        let version = version.context("cannot run QEMU; is qemu-system-x86 installed?")?.stdout;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let host = Host {
            processor: model.map_or("unknown processor", |(_, name)| name).to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            emulated: host_is_emulated(),
            qemu: String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned(),
        };
        Ok(Self { host, guest_kernel: guest_kernel.to_owned(), runs, figures: Vec::new() })
    }

    /// Adds a sample.
    pub fn add(&mut self, figure: Figure, monitor: Monitor, sample: f64) {
        let samples = self.row(figure).entry(monitor.name).or_insert(Samples::Taken(Vec::new()));
        if let Samples::Taken(samples) = samples {
            samples.push(sample);
        }
    }

    /// Notes why a figure cannot be measured with a VMM.
    pub fn not_supported(&mut self, figure: Figure, monitor: Monitor, reason: &str) {
        let text = format!("not supported: {reason}");
        self.row(figure).insert(monitor.name, Samples::NotSupported(text));
    }

    fn row(&mut self, figure: Figure) -> &mut BTreeMap<&'static str, Samples> {
        let known = self.figures.iter().position(|row| row.name == figure.name);
        let at = known.unwrap_or_else(|| {
            let Figure { name, unit, remark } = figure;
            self.figures.push(Row { name, unit, remark, samples: BTreeMap::new() });
            self.figures.len() - 1
        });
        &mut self.figures[at].samples
    }
}

impl Samples {
    fn median(&self) -> Option<f64> {
        let Self::Taken(samples) = self else { return None };
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() % 2 {
            0 => Some((sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0),
            _ => Some(sorted[middle]),
        }
    }

    fn show(&self, unit: Unit) -> String {
        match (self, self.median()) {
            (Self::Taken(samples), Some(median)) => {
                let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
                let most = samples.iter().copied().fold(0.0, f64::max);
                format!("{} ({} - {})", unit.show(median), unit.show(least), unit.show(most))
            }
            (Self::NotSupported(text), _) => text.clone(),
            (Self::Taken(_), None) => String::new(),
        }
    }
}

impl Row {
    /// A VMM's median, and moat's divided by it.
    fn cells(&self, monitor: Monitor) -> [String; 2] {
        let Some(samples) = self.samples.get(monitor.name) else {
            return [String::new(), String::new()];
        };
        let moat = self.samples.get(Monitor::MOAT.name).and_then(Samples::median);
        let ratio = match (moat, samples.median()) {
            (Some(moat), Some(other)) if monitor.name != Monitor::MOAT.name => {
                format!("{:.2}", moat / other)
            }
            _ => String::new(),
        };
        [samples.show(self.unit), ratio]
    }
}

impl Report {
    /// The remark on a VMM's figure.
    fn remark(&self, row: &Row, monitor: Monitor) -> Option<String> {
        let median = |row: &Row| row.samples.get(monitor.name)?.median();
        match row.remark {
            Remark::Nothing => None,
            Remark::Rate { bytes } => {
                let requests = 1e6 / median(row)?;
                let gibibytes = requests * bytes as f64 / f64::from(1 << 30);
                Some(format!("{requests:.0} requests/s, {gibibytes:.1} GiB/s"))
            }
            Remark::Times(other) => {
                let other = self.figures.iter().find(|row| row.name == other)?;
                Some(format!("{:.2} times {}", median(row)? / median(other)?, other.name))
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { processor, processors, kernel, emulated, qemu } = &self.host;
        writeln!(f, "Guests: Linux {} or bare metal, 512 MiB, 1 vCPU. {qemu}.", self.guest_kernel)?;
        writeln!(f, "Host: {processors} x {processor}, Linux {kernel}.")?;
        if *emulated {
            writeln!(f, "The host is emulated: compare the ratios, not the seconds.")?;
        }
        writeln!(
            f,
            "Median (least - most) of {} runs after a first one; \"moat is\" divides medians.\n",
            self.runs
        )?;
        let mut table = Table::new();
        let header = ["", "", "", "moat is", "that is"];
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
        for row in &self.figures {
            let mut name = format!("{}, {}", row.name, row.unit.symbol());
            for monitor in Monitor::ALL {
                let [value, ratio] = row.cells(monitor);
                if !value.is_empty() {
                    table.add_row([
                        std::mem::take(&mut name),
                        monitor.name.to_owned(),
                        value,
                        ratio,
                        self.remark(row, monitor).unwrap_or_default(),
                    ]);
                }
            }
        }
        if let Some(column) = table.column_mut(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")
    }
}
