//! What it costs a guest to access an unplugged block, by its number of vCPUs.
//!
//! moat leaves unplugged blocks in their memory slots until one is accessed. Then every vCPU has to leave
//! the guest while the slots change, which makes the first access slow. From then on an access is an
//! exit like one to a device register. QEMU does nothing of the kind: it lets the guest use the memory.
//!
//! The other vCPUs sleep, never started, or write to plugged memory all the time.

use std::time::Instant;

use anyhow::ensure;
use bare_metal::virtio_mem::Answer;

use vmm::{MemoryDeviceConfig, Size};

use crate::{
    bare_metal_vm::{BareMetalVm, microseconds},
    monitor::{Guests, Monitor},
    report::{Figure, Report, Unit},
};

const REGION: u64 = 1 << 30;
const REQUESTED: u64 = 128 << 20;

/// A machine, and what is measured in it.
struct Case {
    vcpus: u32,
    /// Whether all vCPUs but one write all the time.
    others_write: bool,
    first: Figure,
    another: Figure,
}

impl Case {
    const fn new(
        vcpus: u32,
        others_write: bool,
        first: &'static str,
        another: &'static str,
    ) -> Self {
        let unit = Unit::Microseconds;
        let (first, another) = (Figure::new(first, unit), Figure::new(another, unit));
        Self { vcpus, others_write, first, another }
    }
}

const CASES: [Case; 7] = [
    Case::new(1, false, "first access, 1 vCPU", "another access, 1 vCPU"),
    Case::new(2, false, "first access, 1 vCPU asleep", "another access, 1 vCPU asleep"),
    Case::new(4, false, "first access, 3 vCPUs asleep", "another access, 3 vCPUs asleep"),
    Case::new(8, false, "first access, 7 vCPUs asleep", "another access, 7 vCPUs asleep"),
    Case::new(2, true, "first access, 1 vCPU writing", "another access, 1 vCPU writing"),
    Case::new(4, true, "first access, 3 vCPUs writing", "another access, 3 vCPUs writing"),
    Case::new(8, true, "first access, 7 vCPUs writing", "another access, 7 vCPUs writing"),
];

/// How many first accesses a run has.
const TIMES: u32 = 10;
/// How many accesses follow each first one, in one batch.
const OTHERS: usize = 64;

/// Measures one machine after the other, since vCPUs that write never idle.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let device =
        MemoryDeviceConfig { requested: Size(REQUESTED), ..MemoryDeviceConfig::new(REGION) };
    for Case { vcpus, others_write, first, another } in CASES {
        eprintln!("accessing unplugged memory, {vcpus} vCPUs, others write: {others_write}");
        let mut vm = BareMetalVm::start(guests, Monitor::MOAT, vcpus, device.clone())?;
        prepare(&mut vm, u64::from(vcpus) - 1, others_write)?;
        for round in 0..=runs {
            let (one, more) = access(&mut vm)?;
            if round > 0 {
                report.add(first, Monitor::MOAT, one);
                report.add(another, Monitor::MOAT, more);
            }
        }
    }
    Ok(())
}

/// The block that is unplugged and plugged, between two that stay plugged.
const HOLE: u64 = 1;

/// Plugs a block on each side of the hole, and one for each of the others.
fn prepare(vm: &mut BareMetalVm, others: u64, others_write: bool) -> anyhow::Result<()> {
    let BareMetalVm { program, driver, .. } = vm;
    let blocks = HOLE + 2 + others;
    ensure!(driver.plug(program, 0, blocks as u16) == Answer::Ack, "no blocks");
    program.fill(driver.address, blocks * driver.block_size);
    if others_write {
        program.start_processors();
        for n in 0..others {
            program.hammer(n, driver.block(HOLE + 2 + n), driver.block_size);
        }
    }
    Ok(())
}

/// Microseconds of a first access, and of another one.
fn access(vm: &mut BareMetalVm) -> anyhow::Result<(f64, f64)> {
    let (mut firsts, mut others) = (0.0, 0.0);
    for _ in 0..TIMES {
        let address = vm.driver.block(HOLE);
        let answer = vm.driver.unplug(&mut vm.program, HOLE, 1);
        ensure!(answer == Answer::Ack, "UNPLUG is answered {answer:?}");
        let nothing = vm.clock_nothing();
        let mut clock = |access: &mut dyn FnMut(&mut BareMetalVm)| {
            let start = Instant::now();
            access(vm);
            microseconds(start.elapsed()) - nothing
        };
        firsts += clock(&mut |vm| {
            vm.program.read(8, address);
        });
        others += clock(&mut |vm| {
            vm.program.read_each([(8, address); OTHERS]);
        }) / OTHERS as f64;
        let answer = vm.driver.plug(&mut vm.program, HOLE, 1);
        ensure!(answer == Answer::Ack, "PLUG is answered {answer:?}");
    }
    Ok((firsts / f64::from(TIMES), others / f64::from(TIMES)))
}
