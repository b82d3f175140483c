//! Stock Linux kernels and our own, as guests: they boot, end on command, and their memory
//! grows and shrinks without a byte lost. Names start with rows of `docs/virtio-mem.md` where they
//! have one.

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use support::kallsyms::{Kallsyms, KernelSymbol};
use support::linux::{Linux, kernel, lasting_vcpus, machine};
use support::{GIB, MIB, resident, rounds};
use tempfile::TempDir;
use testvm::guest::{Errno, Observe, OpenFlags, Outcome};
use testvm::kernel::GuestKernel;
use testvm::vm::{BUS, DRIVER, VmConfig};
use vm_memory::GuestAddress;
use vmm::arch::x86_64::boot::BootProtocol;
use vmm::memory::backing::Backing;
use vmm::symbols::{GuestSymbols, SymbolFile, Symbols};
use vmm::{Ending, MemoryDeviceConfig, OnReset, Size, VirtioTransport};

const KERNELS: [&str; 5] =
    ["debian-6.1-cloud", "debian-6.1", "debian-6.12-cloud", "debian-6.12", "protected"];

fn device(size: u64, requested: u64, block_size: u64) -> MemoryDeviceConfig {
    MemoryDeviceConfig {
        requested: Size(requested),
        block_size: Size(block_size),
        ..MemoryDeviceConfig::new(size)
    }
}

const TRANSPORTS: [VirtioTransport; 2] = [VirtioTransport::Mmio, VirtioTransport::Pci];

/// The configuration of a guest whose memory grows. Only movable memory can always be unplugged.
fn growing(
    kernel: &GuestKernel,
    virtio_transport: VirtioTransport,
    memory_devices: Vec<MemoryDeviceConfig>,
) -> VmConfig {
    VmConfig {
        vcpus: lasting_vcpus(2),
        virtio_transport,
        parameters: "memhp_default_state=online_movable".to_owned(),
        memory_devices,
        ..machine(kernel, &["virtio_mmio", BUS, DRIVER])
    }
}

fn load_driver(linux: &Linux) {
    for bus in ["virtio_mmio", BUS] {
        linux.guest.load_module(bus, "").outcome().unwrap();
    }
    linux.guest.load_module(DRIVER, "").unwrap();
}

#[test]
fn every_kernel_boots_with_1_and_4_vcpus() {
    for name in KERNELS {
        for (vcpus, online, virtio_transport) in
            [(1, "0", VirtioTransport::Mmio), (4, "0-3", VirtioTransport::Pci)]
        {
            let config = VmConfig { vcpus, virtio_transport, ..machine(&kernel(name), &[]) };
            let linux = Linux::boot(&config);
            let cpus = linux.guest.read_text("/sys/devices/system/cpu/online").unwrap();
            assert_eq!(cpus.trim(), online, "{name}");
            linux.guest.power_off().unwrap();
            assert_eq!(linux.ending(), Ending::PowerOff, "{name} with {vcpus} vCPUs");
        }
    }
}

#[test]
fn every_entry_and_memory_size_boots() {
    let kernel = kernel("protected");
    let vmlinux = kernel.vmlinux().expect("our own kernel has a vmlinux").to_owned();
    for (protocol, image) in [
        (BootProtocol::Linux64, kernel.image()),
        (BootProtocol::Linux64, &vmlinux),
        (BootProtocol::Pvh, &vmlinux),
    ] {
        for memory in [128 * MIB, 5 * GIB] {
            let image = image.to_owned();
            let config = VmConfig { memory, kernel: image, protocol, ..machine(&kernel, &[]) };
            let linux = Linux::boot(&config);
            let total = linux.guest.meminfo().unwrap().total();
            assert!(total > memory * 3 / 4 && total <= memory, "{total} of {memory}");
        }
    }
}

#[test]
fn eight_vcpus_come_up() {
    let linux = Linux::boot(&VmConfig { vcpus: 8, ..machine(&kernel("protected"), &[]) });
    let cpus = linux.guest.read_text("/sys/devices/system/cpu/online").unwrap();
    assert_eq!(cpus.trim(), "0-7");
}

#[test]
fn boots_in_a_row_never_fail() {
    let kernel = kernel("protected");
    for round in 0..rounds("MOAT_TEST_BOOTS", 8) {
        let vcpus = lasting_vcpus(1 + (round / 2 % 2) as u32 * 3);
        let virtio_transport = TRANSPORTS[round as usize % 2];
        let config = VmConfig { vcpus, virtio_transport, ..machine(&kernel, &[]) };
        let linux = Linux::boot(&config);
        linux.guest.power_off().unwrap();
        assert_eq!(linux.ending(), Ending::PowerOff, "boot {round}");
    }
}

#[test]
fn l7_reboot_halt_and_panic_have_endings_of_their_own() {
    for name in ["debian-6.1-cloud", "debian-6.12-cloud", "protected"] {
        let kernel = kernel(name);
        let vcpus = lasting_vcpus(2);
        let boot = || Linux::boot(&VmConfig { vcpus, ..machine(&kernel, &[]) });
        let linux = boot();
        linux.guest.reboot().unwrap();
        assert_eq!(linux.ending(), Ending::Reset, "{name} reboots");
        let linux = boot();
        linux.guest.halt().unwrap();
        assert_eq!(linux.ending(), Ending::Halt, "{name} halts");
    }
    let linux = Linux::boot(&machine(&kernel("protected"), &[]));
    linux.guest.crash().unwrap();
    assert_eq!(linux.ending(), Ending::Panic);
}

#[test]
fn l7_every_way_to_reboot_is_a_reset() {
    // By the keyboard controller, by the chipset, by a triple fault.
    let ways = [
        ("reboot=k", Ending::Reset),
        ("reboot=p", Ending::Reset),
        ("reboot=t", Ending::TripleFault),
    ];
    for (name, virtio_transport) in [
        ("debian-6.1-cloud", VirtioTransport::Mmio),
        ("debian-6.12-cloud", VirtioTransport::Pci),
        ("protected", VirtioTransport::Mmio),
        ("protected", VirtioTransport::Pci),
    ] {
        let kernel = kernel(name);
        for (parameters, ending) in &ways {
            let linux = Linux::boot(&VmConfig {
                parameters: (*parameters).to_owned(),
                virtio_transport,
                ..machine(&kernel, &[])
            });
            linux.guest.reboot().unwrap();
            assert_eq!(linux.ending(), *ending, "{name}, {parameters}, {virtio_transport:?}");
        }
    }
    for name in ["debian-6.1-cloud", "debian-6.12-cloud"] {
        let on_reset = OnReset::Restart;
        let parameters = "reboot=t".to_owned();
        let config = VmConfig { parameters, on_reset, ..machine(&kernel(name), &[]) };
        let linux = Linux::boot(&config).reboot();
        linux.guest.power_off().unwrap();
        assert_eq!(linux.ending(), Ending::PowerOff, "{name}");
    }
}

#[test]
fn i3_l7_a_machine_that_starts_again_has_nothing_plugged_and_leaks_nothing() {
    /// What this process holds: descriptors, threads, and resident memory in bytes.
    fn held() -> (usize, usize, u64) {
        let count = |path| std::fs::read_dir(path).unwrap().count();
        (count("/proc/self/fd"), count("/proc/self/task"), resident())
    }
    let directory = TempDir::new().unwrap();
    let backings = [Backing::Anonymous, Backing::File(directory.path().join("memory"))];
    for (transport, backing) in TRANSPORTS.into_iter().zip(backings) {
        let memory = backing.into();
        let device = MemoryDeviceConfig { memory, ..device(GIB, 256 * MIB, 2 * MIB) };
        let mut linux = Linux::boot(&VmConfig {
            vcpus: 1,
            on_reset: OnReset::Restart,
            ..growing(&kernel("protected"), transport, vec![device])
        });
        let mut first = None;
        for round in 0..rounds("MOAT_TEST_REBOOTS", 4) {
            load_driver(&linux);
            linux.wait_until_converged(0);
            // Requested sizes outlast a reboot.
            let requested = (1 + round % 3) * 256 * MIB;
            linux.control.resize("mem0", requested).unwrap();
            linux.wait_until_converged(0);
            let (descriptors, threads, bytes) = held();
            let (first_descriptors, first_threads, first_bytes) =
                *first.get_or_insert((descriptors, threads, bytes));
            assert_eq!((descriptors, threads), (first_descriptors, first_threads), "round {round}");
            assert!(bytes < first_bytes + 64 * MIB, "{bytes} bytes, {first_bytes} at first");
            linux = linux.reboot();
            let device = &linux.control.status().unwrap().memory_devices[0];
            assert_eq!((device.plugged, device.requested), (0, requested), "round {round}");
            assert_eq!(device.usable, requested + 256 * MIB, "round {round}");
        }
        linux.guest.power_off().unwrap();
        assert_eq!(linux.ending(), Ending::PowerOff);
    }
}

#[test]
fn l1_blocks_larger_and_smaller_than_linuxs_memory_blocks() {
    let transports = TRANSPORTS.into_iter().cycle();
    for (block_size, transport) in [MIB, 4 * MIB, 256 * MIB].into_iter().zip(transports) {
        let devices = vec![device(GIB, 512 * MIB, block_size)];
        let linux = Linux::boot(&growing(&kernel("protected"), transport, devices));
        load_driver(&linux);
        linux.wait_until_converged(0);
        linux.control.resize("mem0", 0).unwrap();
        linux.wait_until_converged(0);
        let requests = linux.control.status().unwrap().memory_devices[0].requests;
        assert_eq!(requests.error, 0, "{block_size:#x}: {requests:?}");
    }
}

#[test]
fn l2_several_devices_grow_on_their_own() {
    const TIB: u64 = 1 << 40;
    let config = growing(
        &kernel("protected"),
        VirtioTransport::Pci,
        vec![
            device(128 * MIB, 128 * MIB, 2 * MIB),
            device(64 * GIB, 0, 2 * MIB),
            MemoryDeviceConfig {
                memory: Backing::Memfd.into(),
                ..device(TIB / 4, 256 * MIB, 4 * MIB)
            },
        ],
    );
    let linux = Linux::boot(&config);
    let before = linux.guest.meminfo().unwrap().total();
    load_driver(&linux);
    (0..3).for_each(|index| linux.wait_until_converged(index));
    linux.control.resize("mem1", 256 * MIB).unwrap();
    linux.control.resize("mem2", 128 * MIB).unwrap();
    (0..3).for_each(|index| linux.wait_until_converged(index));
    // The driver has unplugged blocks before the kernel takes their memory away.
    let added = || linux.guest.iomem().unwrap().size_of(testvm::vm::ADDED_MEMORY);
    linux.wait_until("the guest has 512 MiB more", || added() == 512 * MIB);
    assert!(linux.guest.meminfo().unwrap().total() > before);
    for device in linux.control.status().unwrap().memory_devices {
        assert_eq!((device.requests.error, device.requests.busy), (0, 0), "{}", device.id);
        assert_eq!(device.violations, Default::default(), "{}", device.id);
    }
}

#[test]
fn l2_c10_each_device_grows_the_node_it_is_on() {
    let of_node = |linux: &Linux, node: u16| {
        let meminfo = format!("/sys/devices/system/node/node{node}/meminfo");
        // A node without memory is not there.
        let text = linux.guest.read_text(&meminfo).unwrap_or_default();
        text.lines().find_map(|line| line.split_once("MemTotal:")).map_or(0, |(_, total)| {
            total.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        })
    };
    for (name, virtio_transport) in
        [("debian-6.12-cloud", VirtioTransport::Mmio), ("protected", VirtioTransport::Pci)]
    {
        let on_node = |node| MemoryDeviceConfig { node, ..device(GIB, 0, 2 * MIB) };
        let devices = vec![on_node(Some(1)), on_node(Some(2)), on_node(None)];
        let linux = Linux::boot(&growing(&kernel(name), virtio_transport, devices));
        load_driver(&linux);
        let ram = of_node(&linux, 0);
        let mut expected = [ram, 0, 0];
        let nodes = |linux: &Linux| [0, 1, 2].map(|node| of_node(linux, node));
        assert_eq!(nodes(&linux), expected, "{name}");
        for (index, node, requested) in [(1, 2, 256 * MIB), (0, 1, 128 * MIB), (2, 0, 128 * MIB)] {
            linux.control.resize(&format!("mem{index}"), requested).unwrap();
            linux.wait_until_converged(index);
            expected[node] += requested;
            // The driver has plugged it before the kernel counts it.
            linux.wait_until(&format!("{name} has {expected:?}"), || nodes(&linux) == expected);
        }
    }
}

#[test]
fn l9_a_suspended_guest_finds_its_memory_as_it_was_or_refuses_to_suspend() {
    const SEED: u64 = 0x736c_6565;
    // Since Linux 6.10 the driver lets the guest suspend to idle, and resets the device meanwhile.
    for (name, transport, suspends) in
        [("debian-6.1", VirtioTransport::Pci, false), ("debian-6.12", VirtioTransport::Mmio, true)]
    {
        let devices = vec![device(GIB, 256 * MIB, 2 * MIB)];
        let linux = Linux::boot(&growing(&kernel(name), transport, devices));
        load_driver(&linux);
        linux.wait_until_converged(0);
        let held = linux.guest.spawn().unwrap().allocate(300 * MIB).unwrap();
        held.fill(SEED).unwrap();
        // With pm_test the kernel resumes devices after 5 seconds: nothing else would wake it.
        linux.guest.write_file("/sys/power/pm_test", "devices").unwrap();
        let start = linux.guest.log_end().unwrap();
        let suspended = linux.guest.write_file("/sys/power/state", "freeze").outcome().unwrap();
        let log = linux.guest.kernel_log(start).unwrap();
        if suspends {
            assert!(suspended == Outcome::Value(6), "{name}: {suspended}, {log:?}");
        } else {
            assert!(suspended == Errno::EPERM, "{name}: {suspended}, {log:?}");
            let refusal = "save/restore not supported";
            assert!(log.iter().any(|record| record.text.contains(refusal)), "{log:?}");
        }
        assert_eq!(held.verify(SEED).unwrap().wrong_words, 0, "{name}");
        held.munmap().unwrap();
        linux.control.resize("mem0", 128 * MIB).unwrap();
        linux.wait_until_converged(0);
        let device = &linux.control.status().unwrap().memory_devices[0];
        assert_eq!(device.violations, Default::default(), "{name}");
        assert_eq!(device.requests.error, 0, "{name}");
    }
}

#[test]
fn l6_q4_random_resizes_under_load_lose_nothing() {
    const LOAD: u64 = 160 * MIB;
    const SEED: u64 = 0x6d6f_6174;
    let devices = vec![device(GIB, GIB, 2 * MIB)];
    let vm = Linux::boot(&VmConfig {
        vcpus: lasting_vcpus(4),
        ..growing(&kernel("protected"), VirtioTransport::Pci, devices)
    });
    vm.load_driver().unwrap();
    let holder = vm.guest.spawn().unwrap();
    let held = holder.allocate(LOAD).unwrap();
    held.fill(SEED).unwrap();
    let hammering = vm.guest.spawn().unwrap();
    hammering.start_hammer(3, LOAD / 4).unwrap();
    let mut random = SEED;
    for round in 0..rounds("MOAT_TEST_RESIZES", 60) {
        // Numerical Recipes' generator; the upper bits are the good ones.
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let blocks = 192 + (random >> 33) % 320;
        vm.request(blocks * 2 * MIB).unwrap();
        if round % 4 != 0 {
            // The others overtake a request that is under way.
            let requested = vm.device().unwrap().requested;
            let what = format!("round {round}: {requested:#x} bytes are plugged");
            vm.wait_until(&what, || vm.device().unwrap().plugged == requested);
        }
        if round % 10 == 9 {
            assert_eq!(held.verify(SEED).unwrap().wrong_words, 0, "round {round}");
        }
    }
    let report = hammering.stop_hammer().unwrap();
    assert_eq!(report.wrong_words, 0, "{report:?}");
    assert!(report.rounds > 0, "{report:?}");
    assert_eq!(held.verify(SEED).unwrap().wrong_words, 0);
    holder.kill().unwrap();
    hammering.kill().unwrap();
    vm.resize(0).unwrap();
    let counters = vm.counters().unwrap();
    assert_eq!((counters.requests.error, counters.requests.busy), (0, 0), "{counters:?}");
    assert_eq!(counters.violations, Default::default());
    vm.power_off().unwrap();
}

/// Where a kernel goes on SYSCALL: what LSTAR contains.
const ENTRY: &str = "entry_SYSCALL_64";

#[test]
fn function_names_match_the_guests_kallsyms_under_kaslr() {
    const MSR_LSTAR: u64 = 0xc000_0082;
    const LINKED_AT: u64 = 0xffff_ffff_8100_0000;
    for name in ["debian-5.10", "debian-6.1-cloud", "debian-6.12-cloud"] {
        let linux = Linux::boot(&machine(&kernel(name), &["msr"]));
        linux.guest.load_module("msr", "").unwrap();
        let process = linux.guest.spawn().unwrap();
        let msrs = process.open("/dev/cpu/0/msr", OpenFlags::RDONLY).unwrap();
        let lstar = msrs.read_at(MSR_LSTAR, 8).unwrap();
        let lstar = u64::from_le_bytes(lstar.try_into().unwrap());
        let kallsyms = Kallsyms::open(&process);
        let start = kallsyms.start_of_image();
        let code = *linux.guest.iomem().unwrap().find("Kernel code").unwrap().range.start();
        let sample = kallsyms.sample();
        assert!(sample.len() > 100, "{name}: {} functions", sample.len());

        let system_map = tempfile::NamedTempFile::new().unwrap();
        let entry = KernelSymbol { address: lstar, kind: "T".into(), name: ENTRY.into() };
        for KernelSymbol { address, kind, name } in sample.iter().chain([&entry]) {
            let address = address - start + LINKED_AT;
            writeln!(system_map.as_file(), "{address:016x} {kind} {name}").unwrap();
        }
        let file = SymbolFile::open(system_map.path()).unwrap();
        let from_file = GuestSymbols::from_file(Arc::new(file));
        let are_right = |symbols: &GuestSymbols| {
            let resolve = |lstar, address| {
                let translate = |address| Some(GuestAddress(address - start + code));
                symbols.resolve(lstar, translate, address)
            };
            let is_right = |lstar, symbol: &KernelSymbol| {
                let found = resolve(lstar, symbol.address).unwrap_or_default();
                sample.iter().any(|KernelSymbol { address, name, .. }| {
                    *address == symbol.address && found == format!("{name}+0x0")
                })
            };
            for symbol in &sample {
                assert!(is_right(lstar, symbol), "{name}: {}", symbol.name);
            }
            assert_eq!(resolve(lstar, lstar + 0x12).unwrap(), format!("{ENTRY}+0x12"));
            assert_eq!(resolve(lstar, 0x40_0000), None, "{name}: an address of user space");
            assert_eq!(resolve(0, lstar), None, "{name}: too early in the boot");
            // The controls: a kernel at another address than the real one.
            assert_eq!(resolve(lstar + 8, lstar + 8), None, "{name}");
            let moved = lstar + (2 << 20);
            assert!(!sample.iter().any(|symbol| is_right(moved, symbol)), "{name}");
        };
        linux.control.with_symbols(are_right).unwrap();
        are_right(&from_file);
    }
}

#[test]
fn function_names_match_the_vmlinux_of_our_kernel() {
    const LINKED_FOR: u64 = 0xffff_ffff_8000_0000;
    let kernel = kernel("protected");
    let vmlinux = kernel.vmlinux().expect("our own kernel has a vmlinux");
    let linux = Linux::boot(&machine(&kernel, &[]));
    let from_file = GuestSymbols::from_file(Arc::new(SymbolFile::open(vmlinux).unwrap()));
    let functions = Symbols::from_file(vmlinux).unwrap();
    let lstar = functions.address_of(ENTRY).unwrap();
    let mut names: HashMap<u64, Vec<String>> = HashMap::new();
    for (address, symbol) in functions.iter() {
        names.entry(address).or_default().push(symbol.to_string());
    }
    // Symbols from here on are no code, and not in the kernel's own table.
    let end = functions.address_of("_einittext").unwrap();
    names.retain(|address, _| *address < end);
    assert!(names.len() > 20_000, "{} addresses", names.len());
    let are_right = |symbols: &GuestSymbols| {
        for (address, names) in &names {
            let translate = |address| Some(GuestAddress(address - LINKED_FOR));
            let symbol = symbols.resolve(lstar, translate, *address).expect("it has a name");
            assert!(names.contains(&symbol), "{address:#x} is {symbol}, and one of {names:?}");
        }
    };
    linux.control.with_symbols(are_right).unwrap();
    are_right(&from_file);
}
