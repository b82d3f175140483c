//! virtio-mem on KVM, driven one access at a time by a bare-metal guest: what depends on KVM's
//! memory slots. Names start with rows of `docs/virtio-mem.md`.

mod support;

use std::fs;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use testvm::huge_pages::HugePagePool;

use bare_metal::virtio_mem::{Answer, Completion, Driver, State, chain, write_descriptor};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::host_memory::{huge_pages, in_use, skip};
use support::{GIB, MIB, ProgramMachine, resident, rounds};
use tempfile::TempDir;
use vmm::arch::x86_64::boot::BootProtocol;
use vmm::memory::backing::{Backing, HugePageSize};
use vmm::memory::host::HostMemoryConfig;
use vmm::violations::refusals::Chain;
use vmm::violations::{GuestAccess, Offender, Operation, Target, ViolationCounters};
use vmm::{
    Ending, Enforcement, Machine, MachineError, MachineIo, MachineSpec, MemoryDeviceConfig,
    OnReset, SerialEndpoint, Size,
};

fn device(requested: u64) -> MemoryDeviceConfig {
    MemoryDeviceConfig { requested: Size(requested), ..MemoryDeviceConfig::new(GIB) }
}

fn violations(vm: &ProgramMachine) -> ViolationCounters {
    vm.machine.control().status().unwrap().memory_devices[0].violations
}

/// Every backing with pages of at most 2 MiB, with a pool that has `free` of them, if this host
/// lets us have one.
fn backings(free: u64) -> (Vec<Backing>, Option<HugePagePool>, TempDir) {
    let size = HugePageSize::Size2M;
    let directory = TempDir::new().unwrap();
    let file = Backing::File(directory.path().join("memory"));
    let pool = huge_pages(size, free);
    let huge = pool.as_ref().map(|_| Backing::Hugetlb2M);
    let backings = [Backing::Anonymous, Backing::Memfd, file].into_iter().chain(huge).collect();
    (backings, pool, directory)
}

#[test]
fn p8_x1_plugged_memory_reads_as_zero_and_works_at_every_width() {
    let (backings, _pool, _directory) = backings(4);
    for backing in backings {
        let config = MemoryDeviceConfig { memory: backing.into(), ..device(16 * MIB) };
        let mut vm = ProgramMachine::start(1, vec![config]);
        let program = &mut vm.program;
        let mut driver = Driver::start(program, true);
        assert_eq!(driver.plug(program, 0, 4), Answer::Ack);
        let first = driver.block(0);
        let last = driver.block(4) - 8;
        for address in [first, driver.block(1) - 8, driver.block(2), last] {
            assert_eq!(program.read(8, address), 0);
        }
        for (width, value) in [(1, 0x11), (2, 0x2222), (4, 0x4444_4444), (8, 0x8888_8888_8888)] {
            program.write(width, first + 0x123, value);
            assert_eq!(program.read(width, first + 0x123), value);
            program.write(width, last, value);
            assert_eq!(program.read(width, last), value);
        }
        assert_eq!(violations(&vm), ViolationCounters::default());
    }
}

#[test]
fn x2_an_access_to_an_unplugged_block_is_reported_and_reaches_nothing() {
    let mut vm = ProgramMachine::start(1, vec![device(16 * MIB)]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    assert_eq!(driver.plug(program, 1, 1), Answer::Ack);
    let below = driver.block(1) - 8;
    program.write(8, below, 0x1234);
    assert_eq!(program.read(8, below), u64::MAX);
    assert_eq!(program.read(4, driver.block(2)), 0xffff_ffff);
    // Beyond the usable part of the region too.
    assert_eq!(program.read(1, driver.address + GIB - 1), 0xff);
    let status = vm.machine.control().status().unwrap();
    let device = &status.memory_devices[0];
    assert_eq!(device.violations, ViolationCounters { reads: 3, writes: 1, ..Default::default() });
    let reported: Vec<_> = device
        .offenders
        .iter()
        .map(|Offender { latest, .. }| {
            let GuestAccess { address, size, operation, .. } = latest.access;
            (latest.accessor.vcpu, address, latest.target.clone(), size, operation)
        })
        .collect();
    let last = driver.block_size - 1;
    let unplugged = |block, offset| Target::UnpluggedBlock { block, offset };
    assert_eq!(
        reported,
        [
            (0, below, unplugged(0, last - 7), 8, Operation::Write),
            (0, below, unplugged(0, last - 7), 8, Operation::Read),
            (0, driver.block(2), unplugged(2, 0), 4, Operation::Read),
            (0, driver.address + GIB - 1, unplugged(511, last), 1, Operation::Read),
        ]
    );
    for Offender { latest, .. } in &device.offenders {
        // The program's code is at 2 MiB and less than a page long.
        assert!((2 * MIB..2 * MIB + 4096).contains(&latest.accessor.instruction_pointer));
    }
}

#[test]
fn x2_an_access_to_an_unplugged_block_populates_no_host_memory() {
    let (backings, _pool, _directory) = backings(1);
    for backing in backings {
        let config = MemoryDeviceConfig { memory: backing.clone().into(), ..device(64 * MIB) };
        let mut vm = ProgramMachine::start(1, vec![config]);
        let program = &mut vm.program;
        let mut driver = Driver::start(program, true);
        assert_eq!(driver.plug(program, 1, 1), Answer::Ack);
        program.fill(driver.block(1), 2 * MIB);
        // The first violation allocates what reports need.
        assert_eq!(program.read(8, driver.block(3)), u64::MAX);
        let before = in_use(&backing);
        program.fill(driver.block(2), 2 * MIB);
        assert_eq!(program.read(8, driver.block(0)), u64::MAX);
        let after = in_use(&backing);
        assert!(after < before + MIB, "{backing:?}: {before} then {after}");
        assert_eq!(program.verify(driver.block(1), 2 * MIB), 0);
        let expected = ViolationCounters { reads: 2, writes: 2 * MIB / 512, ..Default::default() };
        assert_eq!(violations(&vm), expected, "{backing:?}");
    }
}

#[test]
fn x2_control_without_enforcement_nothing_is_noticed() {
    let mut vm = ProgramMachine::start_with(1, vec![device(16 * MIB)], Enforcement::Off);
    let program = &mut vm.program;
    let driver = Driver::start(program, true);
    program.write(8, driver.block(0), 0x1234);
    assert_eq!(program.read(8, driver.block(0)), 0x1234);
    assert_eq!(violations(&vm), ViolationCounters::default());
}

#[test]
fn x3_a_driver_without_unplugged_inaccessible_reads_zeros() {
    let mut vm = ProgramMachine::start(1, vec![device(16 * MIB)]);
    let program = &mut vm.program;
    let driver = Driver::start(program, false);
    assert_eq!(program.read(8, driver.block(0)), 0);
    // Not beyond the usable part: 16 MiB requested and 256 MiB of room.
    assert_eq!(program.read(8, driver.address + 272 * MIB), u64::MAX);
    program.write(8, driver.block(0), 1);
    let expected =
        ViolationCounters { reads: 1, writes: 1, permitted_reads: 1, ..Default::default() };
    assert_eq!(violations(&vm), expected);
}

#[test]
fn u7_x4_unplugged_memory_goes_back_to_the_host_and_loses_its_contents() {
    let (backings, _pool, _directory) = backings(32);
    for backing in backings {
        let config = MemoryDeviceConfig { memory: backing.clone().into(), ..device(64 * MIB) };
        let mut vm = ProgramMachine::start(1, vec![config]);
        let program = &mut vm.program;
        let mut driver = Driver::start(program, true);
        let before = in_use(&backing);
        assert_eq!(driver.plug(program, 0, 32), Answer::Ack);
        // Every page of it.
        program.fill(driver.address, 64 * MIB);
        let full = in_use(&backing);
        assert!(full - before >= 60 * MIB, "{backing:?}: {before} then {full}");
        assert_eq!(driver.unplug(program, 0, 16), Answer::Ack);
        let half = in_use(&backing);
        assert!(full - half >= 30 * MIB, "{backing:?}: {full} then {half}");
        assert_eq!(driver.unplug(program, 16, 16), Answer::Ack);
        let empty = in_use(&backing);
        assert!(half - empty >= 30 * MIB, "{backing:?}: {half} then {empty}");
        assert_eq!(driver.plug(program, 0, 32), Answer::Ack);
        for block in 0..32 {
            assert_eq!(program.read(8, driver.block(block)), 0);
        }
        assert_eq!(driver.unplug_all(program), Answer::Ack);
        assert!(in_use(&backing) < before + 4 * MIB, "{backing:?}");
    }
}

#[test]
fn u7_p7_a_block_may_be_one_page_of_1_gib() {
    let backing = Backing::Hugetlb1G;
    let Some(_pool) = huge_pages(HugePageSize::Size1G, 1) else { return };
    let memory = backing.clone().into();
    let config =
        MemoryDeviceConfig { requested: Size(2 * GIB), ..MemoryDeviceConfig::new(2 * GIB) };
    let config = MemoryDeviceConfig { block_size: Size(GIB), memory, ..config };
    let mut vm = ProgramMachine::start(1, vec![config]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    for _ in 0..2 {
        assert_eq!(driver.plug(program, 0, 2), Answer::Busy);
        assert_eq!(in_use(&backing), 0);
        assert_eq!(driver.plug(program, 1, 1), Answer::Ack);
        assert_eq!(in_use(&backing), GIB);
        assert_eq!(program.read(8, driver.block(2) - 8), 0);
        program.write(8, driver.block(2) - 8, 0x1234);
        assert_eq!(program.read(8, driver.block(2) - 8), 0x1234);
        assert_eq!(driver.unplug(program, 1, 1), Answer::Ack);
        assert_eq!(in_use(&backing), 0);
    }
}

#[test]
fn c1_u7_a_file_on_hugetlbfs_is_made_of_the_pools_pages() {
    let pages = Backing::Hugetlb2M;
    let Some(_pool) = huge_pages(HugePageSize::Size2M, 4) else { return };
    let directory = TempDir::new().unwrap();
    let no_flags = MountFlags::empty();
    mount("none", directory.path(), "hugetlbfs", no_flags, Some(c"pagesize=2M")).unwrap();
    let backing = Backing::File(directory.path().join("memory"));
    assert_eq!(backing.page_size(), 2 * MIB);
    let config = MemoryDeviceConfig { memory: backing.into(), ..device(64 * MIB) };
    // The second finds the file as the first has left it.
    for _ in 0..2 {
        let mut vm = ProgramMachine::start(1, vec![config.clone()]);
        let program = &mut vm.program;
        let mut driver = Driver::start(program, true);
        assert_eq!(driver.plug(program, 0, 5), Answer::Busy);
        assert_eq!(in_use(&pages), 0);
        assert_eq!(driver.plug(program, 0, 4), Answer::Ack);
        program.fill(driver.address, 8 * MIB);
        assert_eq!(in_use(&pages), 8 * MIB);
        assert_eq!(driver.unplug(program, 1, 2), Answer::Ack);
        assert_eq!(in_use(&pages), 4 * MIB);
        assert_eq!(program.verify(driver.block(3), 2 * MIB), 0);
    }
    assert_eq!(in_use(&pages), 0);
    unmount(directory.path(), UnmountFlags::empty()).unwrap();
}

#[test]
fn p7_huge_pages_that_run_out_are_busy_and_nothing_has_changed() {
    let backing = Backing::Hugetlb2M;
    for enforcement in [Enforcement::Strict, Enforcement::Off] {
        let Some(_pool) = huge_pages(HugePageSize::Size2M, 8) else { return };
        let config = MemoryDeviceConfig { memory: backing.clone().into(), ..device(64 * MIB) };
        let mut vm = ProgramMachine::start_with(1, vec![config], enforcement);
        let program = &mut vm.program;
        let mut driver = Driver::start(program, true);
        let slots_before = vm.machine.control().status().unwrap().memory_slots;
        assert_eq!(driver.plug(program, 0, 9), Answer::Busy);
        assert_eq!(driver.state(program, 0, 9), State::Unplugged);
        assert_eq!(in_use(&backing), 0);
        assert_eq!(vm.machine.control().status().unwrap().memory_slots, slots_before);
        assert_eq!(driver.plug(program, 0, 8), Answer::Ack);
        program.fill(driver.address, 16 * MIB);
        // The guest goes on, and gets what it gives back.
        assert_eq!(driver.plug(program, 8, 1), Answer::Busy);
        assert_eq!(program.verify(driver.address, 16 * MIB), 0);
        assert_eq!(driver.unplug(program, 3, 1), Answer::Ack);
        assert_eq!(driver.plug(program, 8, 1), Answer::Ack);
        assert_eq!(program.read(8, driver.block(8)), 0);
        assert_eq!(program.verify(driver.block(4), 8 * MIB), 0);
        assert_eq!(violations(&vm), ViolationCounters::default());
    }
}

#[test]
fn ram_may_be_of_huge_pages_too_and_a_machine_that_lacks_them_does_not_start() {
    let backing = Backing::Hugetlb2M;
    let directory = TempDir::new().unwrap();
    let kernel = directory.path().join("program.elf");
    bare_metal::write_elf(&kernel);
    let start = |ram, output| {
        let spec = MachineSpec {
            boot_protocol: BootProtocol::Pvh,
            memory: Size(128 * MIB),
            memory_backing: ram,
            ..MachineSpec::new(kernel.clone())
        };
        let agent = SerialEndpoint { name: "the agent", input: None, output };
        Machine::start(spec, MachineIo { agent, ..MachineIo::default() })
    };
    // Pages of the program's RAM.
    let pages = 128 / 2;
    let ram: HostMemoryConfig = backing.clone().into();
    {
        let Some(_pool) = huge_pages(HugePageSize::Size2M, pages) else { return };
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let vm = start(ram.clone(), Box::new(theirs)).unwrap();
        // The program sends a byte when it runs.
        ours.read_exact(&mut [0]).unwrap();
        assert_eq!(in_use(&backing), 128 * MIB);
        drop(vm);
        assert_eq!(in_use(&backing), 0);
    }
    let Some(_pool) = huge_pages(HugePageSize::Size2M, pages - 1) else { return };
    let error = start(ram, Box::new(io::sink())).err().unwrap();
    assert!(error.to_string().contains("nothing is left"), "{error}");
    assert_eq!(in_use(&backing), 0);
}

#[test]
fn p8_preallocated_memory_is_populated_before_the_guest_accesses_it() {
    for (prealloc, expected) in [(true, 32 * MIB), (false, 0)] {
        let memory = HostMemoryConfig { prealloc, ..Backing::Memfd.into() };
        let mut vm =
            ProgramMachine::start(1, vec![MemoryDeviceConfig { memory, ..device(64 * MIB) }]);
        let program = &mut vm.program;
        let mut driver = Driver::start(program, true);
        let before = in_use(&Backing::Memfd);
        assert_eq!(driver.plug(program, 4, 16), Answer::Ack);
        // The host updates its count of pages in batches.
        let taken = in_use(&Backing::Memfd).saturating_sub(before);
        assert!(taken.abs_diff(expected) < MIB, "{taken} with prealloc {prealloc}");
    }
}

#[test]
fn u8_u9_neighbours_of_what_is_unplugged_keep_their_contents() {
    let mut vm = ProgramMachine::start(1, vec![device(64 * MIB)]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    // Three PLUGs, side by side.
    for first in [0, 8, 16] {
        assert_eq!(driver.plug(program, first, 8), Answer::Ack);
    }
    program.fill(driver.address, 48 * MIB);
    // Out of the middle of one; then across all three.
    assert_eq!(driver.unplug(program, 3, 2), Answer::Ack);
    assert_eq!(program.verify(driver.block(0), 6 * MIB), 0);
    assert_eq!(program.verify(driver.block(5), 38 * MIB), 0);
    assert_eq!(driver.unplug(program, 6, 12), Answer::Ack);
    assert_eq!(program.verify(driver.block(0), 6 * MIB), 0);
    assert_eq!(program.verify(driver.block(5), 2 * MIB), 0);
    assert_eq!(program.verify(driver.block(18), 12 * MIB), 0);
    assert_eq!(driver.state(program, 0, 3), State::Plugged);
    assert_eq!(driver.state(program, 3, 2), State::Unplugged);
    assert_eq!(driver.state(program, 0, 24), State::Mixed);
    assert_eq!(violations(&vm), ViolationCounters::default());
}

#[test]
fn u8_neighbours_are_reachable_throughout_under_load_from_other_vcpus() {
    const ROUNDS: u64 = 60;
    let mut vm = ProgramMachine::start(4, vec![device(64 * MIB)]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    assert_eq!(driver.plug(program, 0, 16), Answer::Ack);
    program.fill(driver.address, 32 * MIB);
    program.start_processors();
    // Each hammers two blocks with a hole to be between them and the next.
    for n in 0..3 {
        program.hammer(n, driver.block(n * 4), 4 * MIB);
        program.wait_for_hammer(n);
    }
    for round in 0..ROUNDS {
        // A block between two hammered ones goes and comes. Accessing it splits the slot that all are in.
        let hole = 2 + round % 3 * 4;
        assert_eq!(driver.unplug(program, hole, 1), Answer::Ack);
        assert_eq!(program.read(8, driver.block(hole)), u64::MAX);
        assert_eq!(driver.plug(program, hole, 1), Answer::Ack);
    }
    for n in 0..3 {
        let hammered = program.wait_for_hammer(n);
        assert_eq!(hammered.errors, 0, "processor {n} read something else than it wrote");
    }
    assert_eq!(violations(&vm), ViolationCounters { reads: ROUNDS, ..Default::default() });
}

#[test]
fn l2_u8_a_region_of_a_tib_under_load_from_8_vcpus() {
    let start = |size| {
        let device =
            MemoryDeviceConfig { requested: Size(64 * MIB), ..MemoryDeviceConfig::new(size) };
        let memory_devices = vec![device];
        ProgramMachine::start_as(|usual| MachineSpec {
            cpus: 8,
            virtio_mem: memory_devices,
            ..usual
        })
    };
    let mut region = 1024 * GIB;
    let mut vm = loop {
        match start(region) {
            // Some processors have no more than 39 bits of address.
            Err(MachineError::AddressSpace { .. }) => region /= 2,
            started => break started.unwrap(),
        }
    };
    if region < 1024 * GIB {
        let gib = region / GIB;
        skip(format_args!(
            "this host has no addresses for 1 TiB; a region of {gib} GiB is checked"
        ));
    }
    vm.machine.control().resize("mem0", region).unwrap();
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    let last = region / driver.block_size - 1;
    // Neighbours of holes to be, all over the region.
    let plugged: Vec<u64> = (0..7).map(|n| n * (last / 7)).chain([last - 2]).collect();
    program.start_processors();
    for (n, &first) in (0..7).zip(&plugged) {
        assert_eq!(driver.plug(program, first, 3), Answer::Ack);
        program.fill(driver.block(first), 2 * driver.block_size);
        program.hammer(n, driver.block(first), driver.block_size);
        program.wait_for_hammer(n);
    }
    assert_eq!(driver.plug(program, last - 2, 3), Answer::Ack);
    for _ in 0..2 {
        for &first in &plugged {
            let hole = first + 1;
            assert_eq!(driver.unplug(program, hole, 1), Answer::Ack);
            assert_eq!(program.read(8, driver.block(hole)), u64::MAX);
            assert_eq!(driver.plug(program, hole, 1), Answer::Ack);
            assert_eq!(program.read(8, driver.block(hole)), 0);
        }
    }
    for n in 0..7 {
        let hammered = program.wait_for_hammer(n);
        assert_eq!(hammered.errors, 0, "processor {n} read something else than it wrote");
    }
    assert_eq!(violations(&vm), ViolationCounters { reads: 16, ..Default::default() });
    assert_eq!(driver.unplug_all(&mut vm.program), Answer::Ack);
}

#[test]
fn x2_several_vcpus_may_access_an_unplugged_block_at_once() {
    const ROUNDS: u64 = 20;
    let mut vm = ProgramMachine::start(4, vec![device(64 * MIB)]);
    let mut driver = Driver::start(&mut vm.program, true);
    assert_eq!(driver.plug(&mut vm.program, 0, 2), Answer::Ack);
    vm.program.start_processors();
    for n in 0..3 {
        vm.program.hammer(n, driver.block(1), 4096);
    }
    for _ in 0..ROUNDS {
        let before = violations(&vm);
        assert_eq!(driver.unplug(&mut vm.program, 1, 1), Answer::Ack);
        while violations(&vm).reads < before.reads + 100 {
            // Through the guest, so that this ends when the machine does.
            vm.program.read(8, driver.block(0));
        }
        assert_eq!(driver.plug(&mut vm.program, 1, 1), Answer::Ack);
    }
    assert_eq!(violations(&vm).dma, 0);
}

#[test]
fn a1_a2_unplug_all_takes_everything_and_may_be_repeated() {
    let mut vm = ProgramMachine::start(1, vec![device(64 * MIB)]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    let slots_before = vm.machine.control().status().unwrap().memory_slots;
    assert_eq!(driver.plug(program, 0, 3), Answer::Ack);
    assert_eq!(driver.plug(program, 7, 5), Answer::Ack);
    program.fill(driver.block(7), 2 * MIB);
    for _ in 0..2 {
        assert_eq!(driver.unplug_all(program), Answer::Ack);
        assert_eq!(driver.state(program, 0, 32), State::Unplugged);
    }
    assert_eq!(vm.machine.control().status().unwrap().memory_slots, slots_before);
    assert_eq!(program.read(8, driver.block(7)), u64::MAX);
    assert_eq!(driver.plug(program, 7, 1), Answer::Ack);
    assert_eq!(program.read(8, driver.block(7)), 0);
}

#[test]
fn a2_unplug_all_while_another_vcpu_reads_the_blocks_does_not_end_the_machine() {
    const ROUNDS: u64 = 30;
    for backing in [Backing::Memfd, Backing::Anonymous] {
        let config = MemoryDeviceConfig { memory: backing.into(), ..device(64 * MIB) };
        let mut vm = ProgramMachine::start(2, vec![config]);
        let mut driver = Driver::start(&mut vm.program, true);
        vm.program.start_processors();
        vm.program.hammer(0, driver.block(0), 16 << 10);
        for _ in 0..ROUNDS {
            assert_eq!(driver.plug(&mut vm.program, 0, 32), Answer::Ack);
            vm.program.wait_for_hammer(0);
            assert_eq!(driver.unplug_all(&mut vm.program), Answer::Ack);
        }
        assert_ne!(violations(&vm).reads, 0);
    }
}

/// A setting of the host below /proc/sys, restored when this is dropped.
struct HostSetting {
    path: &'static str,
    before: String,
}

impl HostSetting {
    /// None without permission to set it.
    fn set(path: &'static str, value: &str) -> Option<Self> {
        let before = fs::read_to_string(path).unwrap();
        fs::write(path, value).ok()?;
        Some(Self { path, before })
    }
}

impl Drop for HostSetting {
    fn drop(&mut self) {
        fs::write(self.path, &self.before).unwrap();
    }
}

#[test]
fn p7_more_runs_of_blocks_than_the_host_has_mappings_for_are_busy() {
    const MAPPINGS: usize = 5120;
    let path = "/proc/sys/vm/max_map_count";
    let Some(_setting) = HostSetting::set(path, &MAPPINGS.to_string()) else {
        return skip("more runs of blocks than mappings: no permission to lower vm.max_map_count");
    };
    let config =
        MemoryDeviceConfig { requested: Size(8 * GIB), ..MemoryDeviceConfig::new(8 * GIB) };
    let mut vm = ProgramMachine::start(1, vec![config]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    let every_other = (0..4096).step_by(2);
    let busy = every_other.into_iter().find(|block| driver.plug(program, *block, 1) != Answer::Ack);
    let busy = busy.expect("the host has mappings for some");
    assert!(busy > 512, "it has for more than {busy} blocks");
    assert_eq!(driver.plug(program, busy, 1), Answer::Busy);
    let mappings = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    assert!(mappings < MAPPINGS - 256, "{mappings} mappings");
    // A block next to a plugged one needs no further mapping.
    assert_eq!(driver.plug(program, 1, 1), Answer::Ack);
}

#[test]
fn vcpus_can_be_stopped_when_the_limit_of_pending_signals_is_reached() {
    let before = getrlimit(Resource::Sigpending);
    setrlimit(Resource::Sigpending, Rlimit { current: Some(0), ..before }).unwrap();
    let mut vm = ProgramMachine::start(2, vec![device(64 * MIB)]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    program.start_processors();
    assert_eq!(driver.plug(program, 0, 2), Answer::Ack);
    program.hammer(0, driver.block(0), 2 * MIB);
    program.wait_for_hammer(0);
    // For this both vCPUs have to leave the guest.
    assert_eq!(driver.unplug(program, 1, 1), Answer::Ack);
    assert_eq!(program.read(8, driver.block(1)), u64::MAX);
    drop(vm);
    setrlimit(Resource::Sigpending, before).unwrap();
}

/// The number of this process's descriptors of virtual machines and vCPUs.
fn kvm_descriptors() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let target = fs::read_link(entry.unwrap().path()).ok()?;
        target.to_string_lossy().contains("kvm-v").then_some(())
    });
    links.count()
}

#[test]
fn a_machine_that_ended_holds_no_resources_while_its_status_is_readable() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("memory");
    for _ in 0..2 {
        let memory = Backing::File(path.clone()).into();
        let config = MemoryDeviceConfig { memory, ..device(64 * MIB) };
        let mut vm = ProgramMachine::start(1, vec![config]);
        let mut driver = Driver::start(&mut vm.program, true);
        assert_eq!(driver.plug(&mut vm.program, 0, 4), Answer::Ack);
        vm.program.fill(driver.address, 8 * MIB);
        assert_ne!(kvm_descriptors(), 0);
        let control = vm.machine.control();
        vm.program.out_and_end(0x600, 0x34);
        assert_eq!(vm.machine.wait(), Ending::PowerOff);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(kvm_descriptors(), 0);
        // Its last status can still be read.
        assert_eq!(control.status().unwrap().memory_devices[0].plugged, 8 * MIB);
        assert!(control.resize("mem0", 0).is_err());
    }
}

#[test]
fn q1_requests_that_live_in_unplugged_memory_are_not_carried_out() {
    let mut vm = ProgramMachine::start(1, vec![device(64 * MIB)]);
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    let unplugged = driver.block(5);
    let somewhere = 0x50_5000;
    assert_eq!(driver.submit(program, &chain(somewhere, unplugged)), 0);
    // No request to be read: that is an error, and there is room to say so.
    assert_eq!(driver.submit(program, &chain(unplugged, somewhere)), 10);
    assert_eq!(program.read(2, somewhere), 3);
    let [read, written] = chain(unplugged, somewhere);
    write_descriptor(program, 3, read.followed(), 4);
    write_descriptor(program, 4, written, 0);
    driver.make_available(program, 3);
    driver.kick(program);
    assert_eq!(driver.completion(program, Duration::from_secs(60)), Completion::Used(10));
    let expected = ViolationCounters { dma: 3, ..Default::default() };
    assert_eq!(violations(&vm), expected);
    let refused = &vm.machine.control().status().unwrap().memory_devices[0].refused_devices;
    let [device] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!((device.device.as_str(), device.count), ("mem0", 3));
    assert_eq!(device.chain, Some(Chain { queue: 0, descriptor: 3 }));
    assert_eq!((device.address, device.size, device.block), (unplugged, 24, 5));
}

#[test]
fn power_off_reset_and_panic_registers_end_the_machine() {
    for (port, value, ending) in
        [(0x600, 0x34, Ending::PowerOff), (0x602, 1, Ending::Reset), (0x505, 1, Ending::Panic)]
    {
        let ProgramMachine { machine, program, .. } = ProgramMachine::start(1, Vec::new());
        program.out_and_end(port, value);
        assert_eq!(machine.wait(), ending);
    }
}

/// Requests of a driver in any order, on a host that is sometimes busy, and with reboots.
#[test]
fn q4_p7_u6_i3_random_resizes_with_failures_and_reboots_lose_no_block() {
    const BLOCKS: u64 = 64;
    const BUSY_EVERY: u64 = 7;
    const ROUNDS_TO_REBOOT: u64 = 40;
    let config = MemoryDeviceConfig {
        busy_every: NonZeroU64::new(BUSY_EVERY),
        ..MemoryDeviceConfig::new(BLOCKS * 2 * MIB)
    };
    let mut vm = ProgramMachine::start_as(|usual| MachineSpec {
        virtio_mem: vec![config],
        on_reset: OnReset::Restart,
        ..usual
    })
    .unwrap();
    let control = vm.machine.control();
    let running = thread::spawn(move || vm.machine.wait());
    let program = &mut vm.program;
    let mut driver = Driver::start(program, true);
    let at_first = (resident(), control.status().unwrap().memory_slots);
    // What is written to each plugged block.
    let mut marks = [None; BLOCKS as usize];
    let mut carried_out = 0;
    let mut random = 0x6d6f_6174_u64;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % limit
    };
    for round in 1..=rounds("MOAT_TEST_REQUESTS", 120) {
        if round % ROUNDS_TO_REBOOT == 0 {
            program.reset();
            driver = Driver::start(program, true);
            (marks, carried_out) = ([None; BLOCKS as usize], 0);
        }
        let requested = below(BLOCKS + 1);
        control.resize("mem0", requested * driver.block_size).unwrap();
        let first = below(BLOCKS);
        let count = 1 + below(8.min(BLOCKS - first));
        let range = &mut marks[first as usize..(first + count) as usize];
        let plugs = range[0].is_none();
        let answer = if plugs {
            driver.plug(program, first, count as u16)
        } else {
            driver.unplug(program, first, count as u16)
        };
        let is_valid = range.iter().all(|mark| mark.is_none() == plugs);
        let plugged_after = range.len() + marks.iter().flatten().count();
        let range = first as usize..(first + count) as usize;
        let expected = if !is_valid {
            Answer::Error
        } else if plugs && plugged_after as u64 > requested {
            Answer::Nack
        } else {
            carried_out += 1;
            if carried_out % BUSY_EVERY == 0 { Answer::Busy } else { Answer::Ack }
        };
        assert_eq!(answer, expected, "round {round}: {first}+{count}, {requested} requested");
        if answer == Answer::Ack {
            for block in range.clone() {
                marks[block] = plugs.then_some(round << 8 | block as u64);
                if let Some(mark) = marks[block] {
                    assert_eq!(program.read(8, driver.block(block as u64)), 0, "round {round}");
                    program.write(8, driver.block(block as u64), mark);
                }
            }
        }
        // A random block, and one of this request.
        for block in [below(BLOCKS) as usize, range.start] {
            if let Some(mark) = marks[block] {
                assert_eq!(program.read(8, driver.block(block as u64)), mark, "round {round}");
            }
        }
    }
    while driver.unplug_all(program) == Answer::Busy {}
    let status = control.status().unwrap();
    assert_eq!((status.memory_devices[0].plugged, status.memory_slots), (0, at_first.1));
    assert_eq!(status.memory_devices[0].violations, ViolationCounters::default());
    let grown = resident().saturating_sub(at_first.0);
    assert!(grown < 8 * MIB, "{grown} bytes more are resident than at first");
    control.stop();
    assert_eq!(running.join().unwrap(), Ending::Stopped);
}
