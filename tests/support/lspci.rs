//! `lspci -vvv`, of Debian's package pciutils, on the PCI functions that a guest's kernel shows.
//! There is no lspci in the guest, so it runs on the host, on a copy of the guest's sysfs.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use testvm::guest::Guest;
use vmm::machine::PciRangeStatus;

/// The files of a function that lspci reads.
const FILES: [&str; 8] = [
    "class",
    "config",
    "device",
    "irq",
    "resource",
    "subsystem_device",
    "subsystem_vendor",
    "vendor",
];

/// What lspci prints where something is wrong, or where the registers and the kernel differ.
const COMPLAINTS: [&str; 7] =
    ["<chain", "<ignored>", "<unassigned>", "<unreadable>", "<access denied>", "[virtual]", "!!!"];

/// A copy of a guest's `/sys/bus/pci`.
pub struct PciSysfs {
    directory: TempDir,
}

impl PciSysfs {
    pub fn copy_from(guest: &Guest) -> Self {
        const DEVICES: &str = "/sys/bus/pci/devices";
        let copy = Self { directory: TempDir::new().unwrap() };
        fs::create_dir(copy.directory.path().join("slots")).unwrap();
        for address in guest.list_directory(DEVICES).unwrap() {
            fs::create_dir_all(copy.file(&address, "")).unwrap();
            for name in FILES {
                let contents = guest.read_file(&format!("{DEVICES}/{address}/{name}")).unwrap();
                fs::write(copy.file(&address, name), contents).unwrap();
            }
        }
        copy
    }

    /// A file of the function at an address such as `0000:00:02.0`.
    pub fn file(&self, address: &str, name: &str) -> PathBuf {
        self.directory.path().join("devices").join(address).join(name)
    }

    /// The output of lspci for each function, by addresses such as `00:02.0`.
    pub fn lspci(&self) -> BTreeMap<String, String> {
        let output = Command::new("lspci")
            .args(["-nvvv", "-A", "linux-sysfs", "-O"])
            .arg(format!("sysfs.path={}", self.directory.path().display()))
            .output()
            .unwrap_or_else(|error| panic!("lspci: {error}; apt-get install pciutils"));
        // A missing list of modules on the host is reported there too, and ignored here.
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("pcilib:"), "{errors}");
        let text = String::from_utf8_lossy(&output.stdout);
        let functions = text.split("\n\n").filter_map(|function| function.trim().split_once(' '));
        functions.map(|(address, text)| (address.to_owned(), text.to_owned())).collect()
    }
}

/// The lines in which lspci complains.
pub fn complaints(text: &str) -> Vec<&str> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|complaint| line.contains(complaint));
    text.lines().filter(complains).collect()
}

/// Whether lspci sees an address range where it is, as large as it is.
pub fn has_range(text: &str, range: &PciRangeStatus) -> bool {
    let register = match range.register.strip_prefix("BAR ") {
        Some(index) => format!("Region {index}: "),
        None => "Expansion ROM ".to_owned(),
    };
    let place = format!(" at {:x} ", range.address);
    let size = format!("[size={}]", size(range.size));
    text.lines()
        .map(str::trim)
        .any(|line| line.starts_with(&register) && line.contains(&place) && line.ends_with(&size))
}

/// A size as lspci writes it.
fn size(mut bytes: u64) -> String {
    let mut units = ["", "K", "M", "G", "T"].into_iter();
    let mut unit = units.next();
    while bytes.is_multiple_of(1024) {
        bytes /= 1024;
        unit = units.next();
    }
    format!("{bytes}{}", unit.unwrap())
}

/// What a bridge passes on, memory and I/O ports.
pub fn windows(text: &str) -> Vec<RangeInclusive<u64>> {
    let number = |digits| u64::from_str_radix(digits, 16).unwrap();
    text.lines()
        .filter_map(|line| {
            let (_, window) = line.split_once(" behind bridge: ")?;
            let (first, last) = window.split(' ').next()?.split_once('-')?;
            Some(number(first)..=number(last))
        })
        .collect()
}
