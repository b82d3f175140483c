//! The agent in a real guest, without moat's own machine: QEMU emulates the computer. What goes wrong
//! here is the guest side's, not the machine's.
//!
//! `cargo test --release -p lab --test agent_on_qemu -- --ignored`, with kernels that
//! scripts/guest-kernel has fetched.

use std::{fs, path::Path, time::Duration};

use testvm::{
    guest::{End, Errno, GuestError, Observe, OpenFlags, Signal},
    initramfs::Initramfs,
    kernel::GuestKernel,
    vm::{Accelerator, BUS, DRIVER, Iommu, Special, Vm, VmConfig, VmError, Vmm},
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// How long a crash kernel has to boot.
const BOOT: Duration = Duration::from_secs(120);

const QEMU: Vmm = Vmm::Qemu(Accelerator::Tcg, Iommu::Virtio);

fn boot(initramfs: &Initramfs, parameters: &str) -> Vm {
    let config =
        VmConfig { vmm: QEMU, vcpus: 2, parameters, requested: 256 * MIB, special: Special::None };
    Vm::boot(&kernel(), initramfs, config)
        .unwrap_or_else(|trouble| panic!("{trouble}\n{}", trouble.console))
}

fn kernel() -> GuestKernel {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    let name = std::env::var("MOAT_TEST_KERNEL").unwrap_or("debian-6.1-cloud".to_owned());
    GuestKernel::open(&kernels.join(name)).unwrap()
}

fn initramfs() -> Initramfs {
    let modules = kernel().modules(&[BUS, DRIVER]).unwrap();
    Initramfs::new().with_modules(modules)
}

#[test]
#[ignore = "boots a guest under emulation"]
fn memory_keeps_its_contents_while_its_size_changes() -> Result<(), VmError> {
    let vm = boot(&initramfs(), "memhp_default_state=online_movable");
    vm.load_driver()?;
    let guest = &vm.guest;
    let info = guest.meminfo()?;
    assert!(info.total() > 600 * MIB && info.available() < info.total());

    let process = guest.spawn()?;
    let memory = process.allocate(64 * MIB)?;
    memory.fill(1)?;
    process.start_hammer(2, MIB)?;
    vm.resize(512 * MIB)?;
    vm.resize(0)?;
    assert_eq!(memory.verify(1)?.wrong_words, 0);
    let report = process.stop_hammer()?;
    assert!(report.rounds > 0 && report.wrong_words == 0, "{report:?}");

    assert_eq!(memory.verify(2)?.wrong_words, 64 * MIB / 8);
    memory.poke_u8(5 * PAGE, 0)?;
    assert_eq!(memory.verify(1)?.wrong_words, 0, "a child's store is the child's own");
    memory.in_process().poke_u64(5 * PAGE, 0)?;
    assert_eq!(memory.verify(1)?.first_wrong, Some(memory.address() + 5 * PAGE));

    let greedy = guest.spawn()?;
    let error = (0..4).try_for_each(|seed| greedy.allocate(400 * MIB)?.fill(seed)).unwrap_err();
    assert!(
        matches!(error, GuestError::Ended { end: End::Killed(Signal::SIGKILL), .. }),
        "{error}"
    );
    assert_eq!(memory.verify(2)?.wrong_words, 64 * MIB / 8, "only the greedy one was killed");
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn a_stuck_process_is_nobody_elses_problem() -> Result<(), VmError> {
    let vm = boot(&Initramfs::new(), "");
    let guest = &vm.guest;
    let stuck = guest.spawn()?;
    guest.set_deadline(Duration::from_secs(2));
    // A reader waits at its end.
    assert!(matches!(stuck.read_file("/proc/kmsg"), Err(GuestError::NoAnswer { .. })));
    guest.set_deadline(Duration::from_secs(60));
    assert!(matches!(stuck.read_file("/proc/version"), Err(GuestError::Refused { .. })));
    assert!(guest.read_text("/proc/version")?.contains(guest.kernel_release()));
    stuck.clone().kill()?;
    assert!(matches!(stuck.read_file("/proc/version"), Err(GuestError::Ended { .. })));
    assert!(matches!(guest.read_file("/init"), Err(GuestError::Refused { .. })), "too long");
    assert!(matches!(guest.load_module("virtio", ""), Err(GuestError::Refused { .. })), "no index");
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn files() -> Result<(), VmError> {
    let vm = boot(&Initramfs::new(), "");
    let guest = &vm.guest;
    let process = guest.spawn()?;
    let spill = process.open("/tmp/spill", OpenFlags::RDWR | OpenFlags::CREAT)?;
    let data: Vec<u8> = (0..100_000_u32).map(|at| (at * 7919).to_le_bytes()[1]).collect();
    assert_eq!(spill.write_at(3, &data)?, 100_000);
    assert!(spill.read_at(3, 200_000)? == data);
    assert!(guest.read_file("/absent").outcome()? == Errno::ENOENT);
    assert!(guest.list_directory("/sys/bus/pci/devices")?.contains(&"0000:00:00.0".to_owned()));

    // The host bridge of this machine.
    const PCIIOC_MMAP_IS_MEM: u32 = 0x5043_4902;
    let bridge = process.open("/proc/bus/pci/00/00.0", OpenFlags::RDWR)?;
    assert_eq!(bridge.ioctl(PCIIOC_MMAP_IS_MEM, 0)?, 0);

    vm.power_off()?;
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn a_crash_starts_the_crash_kernel_with_an_agent_in_it() -> Result<(), VmError> {
    let image = fs::read(kernel().image()).unwrap();
    let initramfs = initramfs()
        .with_file("crash-kernel", image)
        .with_file("crash-initramfs", initramfs().build());
    let vm = boot(&initramfs, "crashkernel=192M");
    let guest = vm.guest;
    guest.load_crash_kernel("/crash-kernel", "/crash-initramfs", "console=ttyS0 nr_cpus=1")?;
    guest.crash()?;
    let guest = guest.wait_to_restart(BOOT)?;
    let vmcore = guest.spawn()?.open("/proc/vmcore", OpenFlags::RDONLY)?;
    assert_eq!(vmcore.read_at(0, 4)?, b"\x7fELF");
    Ok(())
}
