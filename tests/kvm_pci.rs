//! PCI with a stock Linux: it finds the tree that was built, BARs are decoded where the guest put them,
//! resets reset, and what is not decoded does not answer.

mod support;

use std::fs;
use std::ops::RangeInclusive;

use devices::pci::{Counters, RefusalReason};
use support::linux::{Linux, kernel, machine};
use support::lspci::{self, PciSysfs, complaints};
use testvm::guest::{Level, Mapping, OpenFlags, PciFunction, Process, Protection, Sharing};
use testvm::vm::VmConfig;
use vmm::machine::{MachineError, PciFunctionStatus, PciRangeStatus};
use vmm::violations::{Offender, Privilege, Target};
use vmm::{
    Machine, MachineIo, MachineSpec, MemoryDeviceConfig, PciPlace, ProbeConfig, VirtioTransport,
};

/// `docs/probe.md`: the register at offset 0, and the scratch area.
const MAGIC: u32 = u32::from_le_bytes(*b"moat");
const SCRATCH: u64 = 0x200;

const PAGE: u64 = 4096;

/// The probes of the tree that [`boot`] builds.
const PROBES: [&str; 5] = ["00:02.0", "01:00.0", "01:00.1", "02:00.0", "04:00.0"];

/// A root port with a device of two functions behind it, one with a device of one function, a bridge
/// with a device behind it, and devices on bus 0.
fn boot(name: &str) -> Linux {
    let behind_port =
        ProbeConfig { place: PciPlace::RootPort { access_control: true }, functions: 2, ..probe() };
    let alone = ProbeConfig { place: PciPlace::RootPort { access_control: false }, ..probe() };
    let behind_bridge = ProbeConfig { place: PciPlace::ConventionalBridge, ..probe() };
    Linux::boot(&VmConfig {
        virtio_transport: VirtioTransport::Pci,
        probes: vec![probe(), behind_port, alone, behind_bridge],
        ..machine(&kernel(name), &[])
    })
}

fn probe() -> ProbeConfig {
    ProbeConfig::default()
}

/// The function as the host sees it.
fn status(linux: &Linux, address: &str) -> PciFunctionStatus {
    let functions = linux.control.status().unwrap().pci.expect("PCI").functions;
    functions.into_iter().find(|function| function.address == address).expect(address)
}

fn counters(linux: &Linux, address: &str) -> Counters {
    status(linux, address).counters
}

fn function(linux: &Linux, address: &str) -> PciFunction {
    let address = format!("0000:{address}").parse().unwrap();
    linux.guest.pci_function_at(address)
}

/// Maps the first page of BAR 0.
fn map_registers(process: &Process, function: &PciFunction) -> Mapping {
    let file = process.open(&function.file("resource0"), OpenFlags::RDWR).unwrap();
    file.mmap(0, PAGE, Protection::ReadWrite, Sharing::Shared).unwrap()
}

#[test]
fn linux_finds_the_tree_that_was_built_and_has_no_complaint() {
    for name in ["debian-6.1-cloud", "debian-6.12-cloud", "protected"] {
        let linux = boot(name);
        for record in linux.guest.kernel_log(0).unwrap() {
            let about_pci = record.text.contains("pci") || record.text.contains("PCI");
            assert!(record.level > Level::Warning || !about_pci, "{name}: {record:?}");
        }
        for built in linux.control.status().unwrap().pci.unwrap().functions {
            let found = function(&linux, &built.address);
            let ids = found.read_config(0, 4).unwrap();
            assert_eq!(ids[..2], built.vendor.to_le_bytes(), "{name}: {}", built.address);
            assert_eq!(ids[2..], built.device.to_le_bytes(), "{name}: {}", built.address);
            for range in &built.ranges {
                // Linux assigns an expansion ROM its address only when the ROM is read.
                let Some(index) = range.register.strip_prefix("BAR ") else { continue };
                let index = index.parse().unwrap();
                let place = found.bar(index).unwrap().expect("an address");
                assert_eq!(place, range.address..range.address + range.size, "{name}: {range:?}");
            }
        }
        linux.guest.power_off().unwrap();
    }
}

#[test]
fn lspci_agrees_with_what_was_built() {
    let linux = boot("protected");
    for address in PROBES {
        let function = function(&linux, address);
        linux.guest.write_file(&function.file("enable"), "1").unwrap();
        // Linux assigns an expansion ROM its address only when the ROM is read.
        linux.guest.write_file(&function.file("rom"), "1").unwrap();
        linux.guest.read_file(&function.file("rom")).unwrap();
    }
    let sysfs = PciSysfs::copy_from(&linux.guest);
    let seen = sysfs.lspci();
    let built = linux.control.status().unwrap().pci.unwrap().functions;
    assert_eq!(seen.len(), built.len(), "{:?}", seen.keys());
    for function in &built {
        let text = &seen[&function.address];
        assert_eq!(complaints(text), [""; 0], "{}: {text}", function.address);
        let ids = format!(" {:04x}:{:04x}", function.vendor, function.device);
        assert!(text.lines().next().unwrap().contains(&ids), "{}: {text}", function.address);
        for range in &function.ranges {
            assert!(lspci::has_range(text, range), "{}: {range:?}: {text}", function.address);
        }
    }
    const MSIX: &str = "MSI-X: Enable- Count=8 Masked-\n\t\tVector table: BAR=4 offset=00000000\n\t\tPBA: BAR=4 offset=00000800";
    const ACCESS_CONTROL: &str = "ACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+";
    for (address, expected) in [
        ("00:02.0", &["Root Complex Integrated Endpoint", "FLReset+", MSIX][..]),
        ("00:03.0", &["Root Port", "primary=00, secondary=01, subordinate=01", ACCESS_CONTROL]),
        ("00:04.0", &["Root Port", "primary=00, secondary=02, subordinate=02"]),
        ("00:05.0", &["Root Port", "primary=00, secondary=03, subordinate=04"]),
        ("01:00.0", &["(v2) Endpoint", "FLReset+", MSIX]),
        ("01:00.1", &["(v2) Endpoint", "FLReset+", MSIX]),
        ("02:00.0", &["(v2) Endpoint", "FLReset+", MSIX]),
        ("03:00.0", &["to PCI/PCI-X Bridge", "primary=03, secondary=04, subordinate=04"]),
        ("04:00.0", &[MSIX]),
    ] {
        for expected in expected {
            assert!(seen[address].contains(expected), "{address}: {expected}: {}", seen[address]);
        }
    }
    for (address, unexpected) in [("00:04.0", "Access Control"), ("04:00.0", "Express")] {
        assert!(!seen[address].contains(unexpected), "{address}: {}", seen[address]);
    }
    for (bridge, below) in [
        ("00:03.0", "01:00.0"),
        ("00:03.0", "01:00.1"),
        ("00:04.0", "02:00.0"),
        ("00:05.0", "04:00.0"),
        ("03:00.0", "04:00.0"),
    ] {
        let windows = lspci::windows(&seen[bridge]);
        for range in status(&linux, below).ranges {
            let last = range.address + range.size - 1;
            let passes = |window: &RangeInclusive<u64>| {
                window.contains(&range.address) && window.contains(&last)
            };
            assert!(windows.iter().any(passes), "{bridge}: {windows:x?}: {below}: {range:x?}");
        }
    }
}

/// The control of the test above.
#[test]
fn lspci_complains_where_it_and_the_kernel_disagree() {
    const BAR0: usize = 0x10;
    /// The first capability and what it points to, the next one.
    const CAPABILITY: usize = 0x40;
    const NEXT: usize = CAPABILITY + 1;
    let linux = boot("protected");
    let sysfs = PciSysfs::copy_from(&linux.guest);
    let file = sysfs.file("0000:00:02.0", "config");
    let mut config = fs::read(&file).unwrap();
    config[BAR0..][..4].fill(0);
    config[NEXT] = CAPABILITY as u8;
    fs::write(&file, config).unwrap();
    let text = &sysfs.lspci()["00:02.0"];
    let [address, _rom, list] = complaints(text)[..] else { panic!("{text}") };
    assert!(address.contains("Region 0:") && address.contains("[virtual]"), "{address}");
    assert!(list.contains("<chain looped>"), "{list}");
    let range = &status(&linux, "00:02.0").ranges[0];
    assert!(lspci::has_range(text, range), "the kernel's address");
    let smaller = PciRangeStatus { size: range.size / 2, ..range.clone() };
    assert!(!lspci::has_range(text, &smaller));
}

#[test]
fn ranges_answer_where_linux_put_them_behind_any_bridge() {
    let linux = boot("protected");
    for address in PROBES {
        let function = function(&linux, address);
        linux.guest.write_file(&function.file("enable"), "1").unwrap();
        let before = counters(&linux, address);
        let process = linux.guest.spawn().unwrap();
        let mapping = map_registers(&process, &function);
        assert_eq!(mapping.peek_u32(0).unwrap(), MAGIC, "{address}");
        assert_eq!(counters(&linux, address).reads, before.reads + 1, "{address}");
        process.kill().unwrap();
    }
}

#[test]
fn a_moved_bar_answers_at_its_new_place_only() {
    const BAR0: u64 = 0x10;
    let linux = boot("protected");
    let function = function(&linux, "00:02.0");
    function.decode_memory().unwrap();
    let old = function.bar(0).unwrap().unwrap();
    // This part of the window is free.
    let new = old.start + (64 << 20);
    let process = linux.guest.spawn().unwrap();
    let memory = process.open("/dev/mem", OpenFlags::RDWR).unwrap();
    let map = |address| memory.mmap(address, PAGE, Protection::ReadWrite, Sharing::Shared).unwrap();
    let (at_old, at_new) = (map(old.start), map(new));
    assert_eq!((at_old.peek_u32(0).unwrap(), at_new.peek_u32(0).unwrap()), (MAGIC, u32::MAX));
    function.write_config(BAR0, &(new as u32).to_le_bytes()).unwrap();
    assert_eq!((at_old.peek_u32(0).unwrap(), at_new.peek_u32(0).unwrap()), (u32::MAX, MAGIC));
    assert_eq!(status(&linux, "00:02.0").ranges[0].address, new);
}

#[test]
fn accesses_to_a_bar_that_is_not_decoded_are_refused_and_reported() {
    let linux = boot("protected");
    let address = "00:02.0";
    let function = function(&linux, address);
    function.decode_memory().unwrap();
    let process = linux.guest.spawn().unwrap();
    let mapping = map_registers(&process, &function);
    mapping.poke_u32(SCRATCH, 1).unwrap();
    assert_eq!(counters(&linux, address).refused, 0);
    function.set_command(0).unwrap();
    mapping.poke_u32(SCRATCH, 2).unwrap();
    assert_eq!(mapping.peek_u32(0).unwrap(), u32::MAX);
    assert_eq!(counters(&linux, address).refused, 2);
    let pci = linux.control.status().unwrap().pci.unwrap();
    assert_eq!((pci.violations.reads, pci.violations.writes), (1, 1));
    let [Offender { latest: write, .. }, _read] = &pci.offenders[..] else {
        panic!("{:?}", pci.offenders)
    };
    assert_eq!((write.device.as_str(), write.accessor.privilege), ("probe0", Privilege::User));
    assert_eq!(write.access.value, Some(2));
    let reason = RefusalReason::DecodingOff;
    let target = Target::BaseAddressRange {
        function: address.to_owned(),
        register: "BAR 0".to_owned(),
        offset: SCRATCH,
        reason,
    };
    assert_eq!(write.target, target);
    function.decode_memory().unwrap();
    // The write in between was discarded.
    assert_eq!(mapping.peek_u32(SCRATCH).unwrap(), 1);
}

#[test]
fn every_way_to_reset_a_function_resets_it() {
    let linux = boot("protected");
    // Linux resets a bus for the sake of a function that is alone on it.
    for (address, method) in [
        ("00:02.0", "flr"),
        ("00:02.0", "pm"),
        ("02:00.0", "flr"),
        ("02:00.0", "bus"),
        ("04:00.0", "pm"),
        ("04:00.0", "bus"),
    ] {
        let function = function(&linux, address);
        linux.guest.write_file(&function.file("enable"), "1").unwrap();
        let process = linux.guest.spawn().unwrap();
        let mapping = map_registers(&process, &function);
        mapping.poke_u32(SCRATCH, 1).unwrap();
        let before = counters(&linux, address);
        linux.guest.write_file(&function.file("reset_method"), method).unwrap();
        linux.guest.write_file(&function.file("reset"), "1").unwrap();
        assert_eq!(counters(&linux, address).resets, before.resets + 1, "{address} by {method}");
        // Linux has put back what it had saved, so the mapping leads to the same registers again.
        assert_eq!(mapping.peek_u32(0).unwrap(), MAGIC, "{address} after {method}");
        assert_eq!(mapping.peek_u32(SCRATCH).unwrap(), 0, "{address} after {method}");
        linux.guest.write_file(&function.file("enable"), "0").unwrap();
        process.kill().unwrap();
    }
}

/// Reads from the entropy device. Its driver must not access a register for that: KVM handles the
/// notification, and interrupts are MSI-X.
fn read_entropy(linux: &Linux, address: &str) {
    let process = linux.guest.spawn().unwrap();
    let file = process.open("/dev/hwrng", OpenFlags::RDONLY).unwrap();
    let before = counters(linux, address);
    let bytes = file.read_at(0, 4096).unwrap();
    assert!(bytes.iter().any(|&byte| byte != 0));
    assert_eq!(counters(linux, address), before);
    process.kill().unwrap();
}

#[test]
fn notifications_work_after_linux_has_moved_the_bar() {
    const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_rng"];
    let address = "00:01.0";
    let virtio_transport = VirtioTransport::Pci;
    let config = VmConfig { virtio_transport, ..machine(&kernel("protected"), &DRIVERS) };
    let linux = Linux::boot(&config);
    for driver in DRIVERS {
        linux.guest.load_module(driver, "").unwrap();
    }
    assert_ne!(counters(&linux, address).writes, 0, "the driver has set up the device");
    read_entropy(&linux, address);
    let old = status(&linux, address).ranges[0].address;
    // With its ranges aligned to 1 MiB, the function cannot stay where it is.
    linux.guest.write_file("/sys/bus/pci/resource_alignment", "20@0000:00:01.0").unwrap();
    function(&linux, address).remove().unwrap();
    linux.guest.rescan_pci().unwrap();
    assert_ne!(status(&linux, address).ranges[0].address, old);
    read_entropy(&linux, address);
}

#[test]
fn a_notification_costs_no_exit_wherever_the_bar_is_and_works_nowhere_else() {
    const BAR0: u64 = 0x10;
    /// Offset of the notification structure in the BAR, and an offset in it that is not the queue's notify address.
    const NOTIFY: u64 = 0x1000;
    const ELSEWHERE: u64 = 8;
    let (entropy, probe) = ("00:01.0", "00:02.0");
    let linux = boot("protected");
    let function = |address| function(&linux, address);
    function(entropy).decode_memory().unwrap();
    function(probe).decode_memory().unwrap();
    let old = function(entropy).bar(0).unwrap().unwrap().start;
    // This part of the window is free.
    let new = old + (64 << 20);
    let process = linux.guest.spawn().unwrap();
    let memory = process.open("/dev/mem", OpenFlags::RDWR).unwrap();
    let map =
        |bar| memory.mmap(bar + NOTIFY, PAGE, Protection::ReadWrite, Sharing::Shared).unwrap();
    let (at_old, at_new) = (map(old), map(new));
    // Writes counted by the entropy device and by the probe, and writes refused by the entropy device.
    let counted = |mapping: &Mapping, offset| {
        let now = || (counters(&linux, entropy), counters(&linux, probe));
        let before = now();
        mapping.poke_u32(offset, 0).unwrap();
        let after = now();
        let writes = [after.0.writes - before.0.writes, after.1.writes - before.1.writes];
        (writes, after.0.refused - before.0.refused)
    };
    assert_eq!(counted(&at_old, 0), ([0, 0], 0), "KVM handles it");
    assert_eq!(counted(&at_old, ELSEWHERE), ([1, 0], 0), "the device counts it");
    // Of two BARs at one address the first one answers, until it moves away.
    function(probe).write_config(BAR0, &(old as u32).to_le_bytes()).unwrap();
    assert_eq!(counted(&at_old, 0), ([0, 0], 0));
    function(entropy).write_config(BAR0, &(new as u32).to_le_bytes()).unwrap();
    assert_eq!(counted(&at_old, 0), ([0, 1], 0));
    assert_eq!(counted(&at_new, 0), ([0, 0], 0));
    assert_eq!(counted(&at_new, ELSEWHERE), ([1, 0], 0));
    function(entropy).set_command(0).unwrap();
    assert_eq!(counted(&at_new, 0), ([0, 0], 1));
    function(entropy).decode_memory().unwrap();
    assert_eq!(counted(&at_new, 0), ([0, 0], 0));
}

#[test]
fn a_machine_has_as_many_devices_as_its_bus_has_room_for() {
    let start = |virtio_transport, devices| {
        let spec = MachineSpec {
            transport: virtio_transport,
            virtio_mem: vec![MemoryDeviceConfig::new(128 << 20); devices],
            ..MachineSpec::new(kernel("protected").image().into())
        };
        Machine::start(spec, MachineIo::default())
    };
    // Beside them there are the host bridge and the entropy device.
    let machine = start(VirtioTransport::Pci, 30).unwrap();
    assert_eq!(machine.control().status().unwrap().pci.unwrap().functions.len(), 32);
    let error = start(VirtioTransport::Pci, 31).err();
    assert!(matches!(error, Some(MachineError::PciTopology(_))), "{error:?}");
    start(VirtioTransport::Mmio, 11).unwrap();
    let error = start(VirtioTransport::Mmio, 12).err();
    let expected = MachineError::TooManyDevices { requested: 12, maximum: 11 };
    assert_eq!(error.unwrap().to_string(), expected.to_string());
}
