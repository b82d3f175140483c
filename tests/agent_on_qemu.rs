//! The agent, each test in a guest of its own. QEMU emulates the computer, so no test needs KVM.

mod support;

use std::time::Duration;

use support::MIB;
use support::linux::kernel;
use testvm::guest::{End, Errno, GuestError, Observe, OpenFlags, Signal};
use testvm::initramfs::Initramfs;
use testvm::kernel::GuestKernel;
use testvm::vm::{Accelerator, BUS, DRIVER, Iommu, Vm, VmConfig, VmError, Vmm};
use vmm::{MemoryDeviceConfig, Size};

const PAGE: u64 = 4096;

fn boot(kernel: &GuestKernel, initramfs: &Initramfs) -> Vm {
    let requested = 256 * MIB;
    let device =
        MemoryDeviceConfig { requested: Size(requested), ..MemoryDeviceConfig::new(1024 * MIB) };
    let vmm = Vmm::Qemu(Accelerator::Tcg, Iommu::Virtio);
    Vm::boot(&VmConfig {
        vcpus: 2,
        initrd: initramfs.build(),
        parameters: "memhp_default_state=online_movable".to_owned(),
        memory_devices: vec![device],
        ..VmConfig::new(vmm, kernel.image().to_owned())
    })
    .unwrap_or_else(|trouble| panic!("{trouble}\n{}", trouble.console))
}

#[test]
fn memory_keeps_what_its_process_wrote_until_the_process_is_killed() -> Result<(), VmError> {
    let kernel = kernel("protected");
    let drivers = kernel.modules(&[BUS, DRIVER])?;
    let vm = boot(&kernel, &Initramfs::new().with_modules(drivers));
    vm.load_driver()?;
    let guest = &vm.guest;
    let info = guest.meminfo()?;
    assert!(info.total() > 600 * MIB && info.available() < info.total());

    let process = guest.spawn()?;
    let memory = process.allocate(64 * MIB)?;
    memory.fill(1)?;
    assert_eq!(memory.verify(1)?.wrong_words, 0);
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
fn a_stuck_process_does_not_block_others() -> Result<(), VmError> {
    let vm = boot(&kernel("protected"), &Initramfs::new());
    let guest = &vm.guest;
    let stuck = guest.spawn()?;
    guest.set_deadline(Duration::from_secs(2));
    // A read at the end of this file blocks.
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
fn files_are_written_read_and_listed() -> Result<(), VmError> {
    let vm = boot(&kernel("protected"), &Initramfs::new());
    let guest = &vm.guest;
    let process = guest.spawn()?;
    let spill = process.open("/tmp/spill", OpenFlags::RDWR | OpenFlags::CREAT)?;
    let data: Vec<u8> = (0..100_000_u32).map(|at| (at * 7919).to_le_bytes()[1]).collect();
    assert_eq!(spill.write_at(3, &data)?, 100_000);
    assert!(spill.read_at(3, 200_000)? == data);
    assert!(guest.read_file("/absent").outcome()? == Errno::ENOENT);
    assert!(guest.list_directory("/sys/bus/pci/devices")?.contains(&"0000:00:00.0".to_owned()));

    vm.power_off()?;
    Ok(())
}
