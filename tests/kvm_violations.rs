//! Accesses to unplugged blocks, and what happens after them: one access at a time by a bare-metal
//! guest, and how Linux handles a machine check.

mod support;

use std::time::Duration;

use agent_protocol::{Fault, OpenFlags, Protection, Sharing, Signal};
use bare_metal::virtio_mem::{Answer, Completion, Driver, write_descriptor};
use bare_metal::{Exception, Program};
use support::linux::{Linux, kernel, machine};
use support::{GIB, MIB, ProgramMachine};
use testvm::guest::GuestError;
use testvm::vm::VmConfig;
use virtio_driver::Buffer;
use vmm::violations::{Offender, Operation, Privilege, Target, ViolationCounters, ViolationPolicy};
use vmm::{Ending, MachineControl, MemoryDeviceConfig, Size};

/// Where nothing is, the entry of the program's page tables for it, and bits of such entries.
const LAST_GIB: u64 = 7 * GIB;
const ENTRY_OF_LAST_GIB: u64 = 0x30_1000 + 7 * 8;
const PRESENT_WRITABLE: u64 = 0b11;
const HUGE_PAGE: u64 = 1 << 7;

/// A machine whose driver has negotiated UNPLUGGED_INACCESSIBLE and plugged nothing.
fn start(on_violation: ViolationPolicy) -> (ProgramMachine, Driver) {
    let device = MemoryDeviceConfig {
        requested: Size(16 * MIB),
        on_violation,
        ..MemoryDeviceConfig::new(GIB)
    };
    let mut vm = ProgramMachine::start(1, vec![device]);
    let driver = Driver::start(&mut vm.program, true);
    (vm, driver)
}

fn counters(control: &MachineControl) -> ViolationCounters {
    control.status().unwrap().memory_devices[0].violations
}

fn offenders(control: &MachineControl) -> Vec<Offender> {
    control.status().unwrap().memory_devices[0].offenders.clone()
}

/// Each offender's instruction, operation, size, block, offset in it, and count.
fn reported(control: &MachineControl) -> Vec<(String, Operation, u32, u64, u64, u64)> {
    let reported = offenders(control).into_iter().map(|Offender { count, latest, .. }| {
        let Target::UnpluggedBlock { block, offset } = latest.target else {
            panic!("{:?} is no block", latest.target)
        };
        let instruction = latest.accessor.instruction.unwrap_or_default();
        (instruction, latest.access.operation, latest.access.size, block, offset, count)
    });
    reported.collect()
}

#[test]
fn a_report_names_the_instruction_at_every_width() {
    let (mut vm, driver) = start(ViolationPolicy::Report);
    let address = driver.block(3) + 0x128;
    // Each with its bytes, the first in the lowest.
    let instructions = [
        (1, ("movzbl (%r8),%r10d", 0x10b6_0f45), ("mov %r9b,(%r8)", 0x08_8845)),
        (2, ("movzwl (%r8),%r10d", 0x10b7_0f45), ("mov %r9w,(%r8)", 0x0889_4566)),
        (4, ("mov (%r8),%r10d", 0x10_8b45), ("mov %r9d,(%r8)", 0x08_8945)),
        (8, ("mov (%r8),%r10", 0x10_8b4d), ("mov %r9,(%r8)", 0x08_894d)),
    ];
    for (width, read, write) in instructions {
        vm.program.read(width, address);
        vm.program.write(width, address, 0x1122_3344_5566_7788);
        let control = vm.machine.control();
        let all = offenders(&control);
        let [.., reader, writer] = &all[..] else { panic!("{all:?}") };
        for (offender, (instruction, bytes), operation) in
            [(reader, read, Operation::Read), (writer, write, Operation::Write)]
        {
            let latest = &offender.latest;
            assert_eq!(latest.accessor.instruction.as_deref(), Some(instruction));
            assert_eq!((latest.accessor.vcpu, latest.accessor.cr3), (0, 0x30_0000));
            assert_eq!(latest.accessor.privilege, Privilege::Kernel);
            assert_eq!((latest.access.operation, latest.access.address), (operation, address));
            assert_eq!(latest.access.size, u32::from(width));
            assert_eq!(latest.target, Target::UnpluggedBlock { block: 3, offset: 0x128 });
            assert_eq!((offender.count, latest.device.as_str()), (1, "mem0"));
            // Later than 2020.
            assert!(latest.time_ms > 1_577_836_800_000, "{}", latest.time_ms);
            let there = vm.program.read(4, latest.accessor.instruction_pointer);
            let length = if bytes > 0xff_ffff { 4 } else { 3 };
            assert_eq!(there & (u64::MAX >> (64 - length * 8)), bytes);
        }
        let written = 0x1122_3344_5566_7788 & (u64::MAX >> (64 - u32::from(width) * 8));
        assert_eq!((reader.latest.access.value, writer.latest.access.value), (None, Some(written)));
    }
    let expected = ViolationCounters { reads: 4, writes: 4, ..Default::default() };
    assert_eq!(counters(&vm.machine.control()), expected);
}

#[test]
fn a_loop_is_one_offender_with_a_count() {
    let (mut vm, driver) = start(ViolationPolicy::Report);
    vm.program.fill(driver.block(2), 64 * 512);
    assert_eq!(vm.program.verify(driver.block(2), 64 * 512), 64);
    let last = 63 * 512;
    assert_eq!(
        reported(&vm.machine.control()),
        [
            ("mov %r8,(%r8)".to_owned(), Operation::Write, 8, 2, last, 64),
            ("cmp %r8,(%r8)".to_owned(), Operation::Read, 8, 2, last, 64),
        ]
    );
}

#[test]
fn string_instructions_are_reported_element_by_element() {
    const QUADS: u64 = 5;
    let (mut vm, driver) = start(ViolationPolicy::Report);
    vm.program.copy(driver.block(1), QUADS);
    for quad in 0..QUADS {
        assert_eq!(vm.program.read(8, Program::COPY + quad * 8), u64::MAX);
    }
    vm.program.store_string(driver.block(1), QUADS);
    let last = (QUADS - 1) * 8;
    assert_eq!(
        reported(&vm.machine.control()),
        [
            ("rep movsq (%rsi),(%rdi)".to_owned(), Operation::Read, 8, 1, last, QUADS),
            ("rep stos %rax,(%rdi)".to_owned(), Operation::Write, 8, 1, last, QUADS),
        ]
    );
}

#[test]
fn stop_ends_the_machine_and_reports_the_access() {
    let (ProgramMachine { machine, program, .. }, driver) = start(ViolationPolicy::Stop);
    program.write_and_end(driver.block(7) + 0x10, 0x1234);
    let ending = machine.wait();
    assert_eq!(ending.exit_code(), 16);
    let message = ending.to_string();
    let Ending::Violation(violation) = ending else { panic!("{message}") };
    assert_eq!(violation.target, Target::UnpluggedBlock { block: 7, offset: 0x10 });
    assert_eq!(violation.accessor.instruction.as_deref(), Some("mov %r9,(%r8)"));
    for part in ["vCPU 0", "kernel mode", "write of 8 bytes", "unplugged block 7 of mem0", "0x1234"]
    {
        assert!(message.contains(part), "{message:?} should say {part:?}");
    }
}

#[test]
fn stop_ends_the_machine_for_dma_too() {
    let (mut vm, mut driver) = start(ViolationPolicy::Stop);
    let (address, block) = (driver.block(5) + 0x20, 5);
    write_descriptor(&mut vm.program, 0, Buffer::writable(address, 10), 0);
    driver.make_available(&mut vm.program, 0);
    driver.kick(&mut vm.program);
    // No room to answer in: the chain comes back empty.
    assert_eq!(driver.completion(&mut vm.program, Duration::from_secs(60)), Completion::Used(0));
    let ending = vm.machine.wait();
    assert_eq!(ending.exit_code(), 16);
    let message = ending.to_string();
    let Ending::RefusedDma(refused) = ending else { panic!("{message}") };
    assert_eq!((refused.address, refused.block, refused.count), (address, block, 1));
    for part in ["mem0: DMA of 10 bytes", "queue 0, descriptor 0", "unplugged block 5 of mem0"] {
        assert!(message.contains(part), "{message:?} should say {part:?}");
    }
}

#[test]
fn ignored_violations_are_only_counted() {
    let (mut vm, driver) = start(ViolationPolicy::Ignore);
    assert_eq!(vm.program.read(8, driver.block(0)), u64::MAX);
    vm.program.write(8, driver.block(0), 1);
    let expected = ViolationCounters { reads: 1, writes: 1, ..Default::default() };
    assert_eq!(counters(&vm.machine.control()), expected);
    assert_eq!(offenders(&vm.machine.control()), []);
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_reported_and_skipped() {
    let (mut vm, driver) = start(ViolationPolicy::Report);
    // Nothing was added to what was zero: registers stay as they are.
    assert_eq!(vm.program.add_vector(driver.block(4) + 0x40), 0);
    vm.program.store_vector(driver.block(5) + 8);
    assert_eq!(
        reported(&vm.machine.control()),
        [
            ("paddq (%r8),%xmm0".to_owned(), Operation::Read, 16, 4, 0x40, 1),
            ("movlps %xmm0,(%r8)".to_owned(), Operation::Write, 8, 5, 8, 1),
        ]
    );
    assert_eq!(vm.program.take_exception(), None);
}

#[test]
fn x1_plugged_memory_is_no_violation_for_any_instruction() {
    const RETURN: u64 = 0xc3;
    let (mut vm, mut driver) = start(ViolationPolicy::Report);
    assert_eq!(driver.plug(&mut vm.program, 4, 2), Answer::Ack);
    // Code, and a page table: its first entry is the huge page of the other block.
    vm.program.write(1, driver.block(4), RETURN);
    vm.program.call(driver.block(4));
    assert_eq!(vm.program.take_exception(), None);
    vm.program.write(8, driver.block(4), driver.block(5) | HUGE_PAGE | PRESENT_WRITABLE);
    vm.program.write(8, ENTRY_OF_LAST_GIB, driver.block(4) | PRESENT_WRITABLE);
    vm.program.write(8, LAST_GIB + 0x1_2340, 0x5678);
    assert_eq!(vm.program.read(8, driver.block(5) + 0x1_2340), 0x5678);
    vm.program.write(8, driver.block(4) + 0x40, 0x1234);
    assert_eq!(vm.program.add_vector(driver.block(4) + 0x40), 0x1234);
    vm.program.store_vector(driver.block(5));
    assert_eq!(vm.program.read(8, driver.block(5)), 0x1234);
    assert_eq!(counters(&vm.machine.control()), ViolationCounters::default());
}

#[test]
fn a_fetch_from_unplugged_memory_is_an_invalid_opcode() {
    const INVALID_OPCODE: u64 = 6;
    let (mut vm, driver) = start(ViolationPolicy::Report);
    let target = driver.block(6) + 0x100;
    vm.program.call(target);
    let exception = vm.program.take_exception().expect("an exception");
    assert_eq!((exception.vector, exception.instruction_pointer), (INVALID_OPCODE, target));
    let control = vm.machine.control();
    assert_eq!(reported(&control), [(String::new(), Operation::Fetch, 1, 6, 0x100, 1)]);
    assert_eq!(offenders(&control)[0].latest.accessor.instruction_pointer, target);
    let expected = ViolationCounters { fetches: 1, ..Default::default() };
    assert_eq!(counters(&control), expected);
}

/// KVM treats the missing page table as one without entries, and does not exit to moat. The program has
/// no gate for a page fault.
#[test]
fn a_page_table_in_unplugged_memory_is_a_page_fault() {
    let (mut vm, driver) = start(ViolationPolicy::Report);
    vm.program.write(8, ENTRY_OF_LAST_GIB, driver.block(1) | PRESENT_WRITABLE);
    let ProgramMachine { machine, program, .. } = vm;
    // The entry is at the start of a page: at the same offset KVM would take it for the operand.
    program.write_and_end(LAST_GIB + 0x10, 1);
    let control = machine.control();
    assert_eq!(machine.wait(), Ending::TripleFault);
    assert_eq!(counters(&control), ViolationCounters::default());
}

#[test]
fn a_machine_check_is_precise_and_has_the_address() {
    const MACHINE_CHECK: u64 = 18;
    const UNCORRECTED: u64 = 1 << 61;
    const ADDRESS_VALID: u64 = 1 << 58;
    // MCIP, RIPV and EIPV: the instruction pointer is valid.
    const PRECISE: u64 = 0b111;
    let (mut vm, driver) = start(ViolationPolicy::MachineCheck);
    let control = vm.machine.control();
    let expect_check = |program: &mut Program, address: u64, code: u64| {
        let exception = program.take_exception().expect("an exception");
        let Exception { vector, instruction_pointer, mcg_status, banks } = exception;
        assert_eq!(vector, MACHINE_CHECK, "{exception:x?}");
        assert_eq!(mcg_status & PRECISE, PRECISE, "{exception:x?}");
        let (status, reported) =
            *banks.iter().find(|bank| bank.0 != 0).expect("a bank has something");
        assert_eq!(status & (UNCORRECTED | ADDRESS_VALID), UNCORRECTED | ADDRESS_VALID);
        assert_eq!((status & 0xffff, reported), (code, address), "{exception:x?}");
        let offenders = offenders(&control);
        let latest = &offenders.last().expect("an offender").latest;
        assert_eq!(latest.accessor.instruction_pointer, instruction_pointer, "{latest:?}");
        assert_eq!(latest.access.address, address);
    };
    let program = &mut vm.program;
    program.read(8, driver.block(1) + 0x18);
    expect_check(program, driver.block(1) + 0x18, 0x134);
    program.write(4, driver.block(2) + 0x20, 1);
    expect_check(program, driver.block(2) + 0x20, 0x144);
    // Each is one machine check, however many elements there are.
    program.copy(driver.block(3), 100);
    expect_check(program, driver.block(3), 0x134);
    program.add_vector(driver.block(4));
    expect_check(program, driver.block(4), 0x134);
    program.call(driver.block(5));
    expect_check(program, driver.block(5), 0x150);
    assert_eq!(program.take_exception(), None);
    let expected = ViolationCounters { reads: 3, writes: 1, fetches: 1, ..Default::default() };
    assert_eq!(counters(&vm.machine.control()), expected);
}

/// Linux without a driver accesses the last page of the region: a process by itself, and the kernel when the
/// process reads /dev/zero into it.
#[test]
fn linux_goes_on_after_report_and_ends_after_stop() {
    const PAGE: u64 = 4096;
    const BLOCK: u64 = MemoryDeviceConfig::DEFAULT_BLOCK_SIZE;
    let expected = Target::UnpluggedBlock { block: GIB / BLOCK - 1, offset: BLOCK - PAGE + 8 };
    for name in ["debian-6.1", "debian-6.12", "protected"] {
        let boot = |on_violation| {
            let device = MemoryDeviceConfig { on_violation, ..MemoryDeviceConfig::new(GIB) };
            let config = VmConfig { memory_devices: vec![device], ..machine(&kernel(name), &[]) };
            let linux = Linux::boot(&config);
            let process = linux.guest.spawn().unwrap();
            let memory = process.open("/dev/mem", OpenFlags::RDWR).unwrap();
            let address = linux.control.status().unwrap().memory_devices[0].address + GIB - PAGE;
            let page = memory.mmap(address, PAGE, Protection::ReadWrite, Sharing::Shared).unwrap();
            (linux, process, page, address + 8)
        };
        let (linux, process, page, address) = boot(ViolationPolicy::Report);
        assert_eq!(page.peek_u64(8).unwrap(), u64::MAX, "{name}");
        let zero = process.open("/dev/zero", OpenFlags::RDONLY).unwrap();
        page.in_process().read_from(&zero, 0, 8, 8).unwrap();
        let all = offenders(&linux.control);
        let [reader, writer] = &all[..] else { panic!("{name}: {all:?}") };
        for (offender, operation, privilege) in [
            (reader, Operation::Read, Privilege::User),
            (writer, Operation::Write, Privilege::Kernel),
        ] {
            let Offender { count, latest, .. } = offender;
            let access = &latest.access;
            assert_eq!((*count, access.operation, access.address), (1, operation, address));
            assert_eq!((latest.accessor.privilege, &latest.target), (privilege, &expected));
        }
        let symbol = writer.latest.accessor.symbol.as_deref().unwrap_or_default();
        assert!(is_clearing(symbol), "{name}: {writer:?}");
        linux.guest.power_off().unwrap();
        assert_eq!(linux.ending(), Ending::PowerOff, "{name}");

        let (linux, _process, page, _) = boot(ViolationPolicy::Stop);
        page.peek_u64(8).unwrap_err();
        let Ending::Violation(violation) = linux.ending() else { panic!("{name} goes on") };
        assert_eq!(violation.target, expected, "{name}");
    }
}

/// Whether a function is one of those by which these kernels read /dev/zero.
fn is_clearing(symbol: &str) -> bool {
    ["clear_user", "rep_stos", "zero"].iter().any(|part| symbol.contains(part))
}

/// A process of Linux that reads the last page of the region is killed, and Linux goes on; when the
/// kernel itself writes there, it panics. Debian 6.1's cloud kernel knows no machine checks.
#[test]
fn linux_handles_a_machine_check_as_a_memory_error() {
    const PAGE: u64 = 4096;
    for name in ["debian-6.1", "debian-6.12-cloud", "protected"] {
        let linux = Linux::boot(&VmConfig {
            memory_devices: vec![MemoryDeviceConfig {
                on_violation: ViolationPolicy::MachineCheck,
                ..MemoryDeviceConfig::new(GIB)
            }],
            ..machine(&kernel(name), &[])
        });
        // No driver has come, and none may read beyond the usable part of the region.
        let address = linux.control.status().unwrap().memory_devices[0].address + GIB - PAGE;
        let process = linux.guest.spawn().unwrap();
        let memory = process.open("/dev/mem", OpenFlags::RDWR).unwrap();
        let zero = process.open("/dev/zero", OpenFlags::RDONLY).unwrap();
        let map = || memory.mmap(address, PAGE, Protection::ReadWrite, Sharing::Shared).unwrap();
        let error = map().peek_u64(8).unwrap_err();
        let GuestError::Faulted { fault: Fault { signal: Signal::SIGBUS, .. }, .. } = error else {
            panic!("{name}: {error}")
        };
        let all = offenders(&linux.control);
        let reader = &all[0].latest;
        assert_eq!(
            (reader.accessor.privilege, reader.access.address),
            (Privilege::User, address + 8)
        );
        assert_eq!(reader.accessor.symbol, None, "{name}: it is no function of the kernel");
        let instruction = reader.accessor.instruction.as_deref();
        assert!(instruction.is_some_and(|text| text.contains("mov")), "{name}: {reader:?}");
        linux.wait_until("the kernel says so", || {
            let printed = linux.console();
            let said = |text: &str| printed.as_str().contains(text);
            said("Machine Check Exception") && said(&format!("ADDR {:x}", address + 8))
        });
        map().in_process().read_from(&zero, 0, 0, 8).unwrap_err();
        let ending = linux.ending();
        let all = offenders(&linux.control);
        let writer = &all.last().unwrap().latest;
        assert_eq!(
            (writer.accessor.privilege, writer.access.operation),
            (Privilege::Kernel, Operation::Write)
        );
        assert!(writer.accessor.instruction.is_some(), "{name}: {writer:?}");
        let symbol = writer.accessor.symbol.as_deref().unwrap_or_default();
        assert!(is_clearing(symbol), "{name}: {writer:?}");
        assert_eq!(reader.accessor.symbol, None, "{name} has no names for user space");
        match ending {
            // A kernel with a pvpanic driver has no time to say why.
            Ending::Panic => {}
            Ending::Reset => {
                let printed = linux.console();
                for said in ["Kernel panic", &format!("ADDR {address:x}")] {
                    assert!(
                        printed.as_str().contains(said),
                        "{name} should say {said:?}: {printed:?}"
                    );
                }
            }
            other => panic!("{name}: {other}"),
        }
    }
}
