//! virtio-mem requests for memory that nobody touches, in a region of 1 GiB.
//!
//! What a VMM can do about it: few steps from the guest's notification to its answer, and little work
//! for a block. QEMU serves the device in the exit of the vCPU, for its virtio-mem-pci has no ioeventfd;
//! moat wakes a thread of its own, so that no vCPU works for a device. And moat puts unplugged blocks
//! out of reach, which changes its mapping with each request.

use bare_metal::virtio_mem::{PLUG, UNPLUG};

use crate::{
    contender::{Backing, Contender, MemoryDevice, Programs},
    report::{Figure, Report, Unit},
    subject::Subject,
};

const REGION: u64 = 1 << 30;
const SMALL: u64 = 2 << 20;
const LARGE: u64 = 128 << 20;

const PLUG_SMALL: Figure = Figure::request("PLUG of 2 MiB", SMALL);
const UNPLUG_SMALL: Figure = Figure::request("UNPLUG of 2 MiB, untouched", SMALL);
const BOTH_LARGE: Figure = Figure::request("PLUG or UNPLUG of 128 MiB, untouched", LARGE);
const NOTHING: Figure =
    Figure::new("a batch of no requests, which is taken off", Unit::Microseconds);

const CONTENDERS: [Contender; 4] =
    [Contender::MOAT, Contender::MOAT_PCI, Contender::MOAT_UNENFORCED, Contender::QEMU_Q35];

/// Has the guests make them in turn.
pub fn section(programs: &Programs, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let device = MemoryDevice { size: REGION, requested: REGION, backing: Backing::Anonymous };
    let mut subjects = Vec::new();
    for contender in CONTENDERS {
        subjects.push((contender, Subject::start(programs, contender, 1, device)?));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: requests");
        for (contender, subject) in &mut subjects {
            let block = subject.driver.block_size;
            let small = || 0..REGION / block;
            let plugged = subject.clock(&subject.requests(PLUG, small(), SMALL))?;
            let unplugged = subject.clock(&subject.requests(UNPLUG, small(), SMALL))?;
            // These are so few that one batch has them all, several times.
            let large = || (0..REGION / block).step_by((LARGE / block) as usize);
            let [plugs, unplugs] =
                [PLUG, UNPLUG].map(|kind| subject.requests(kind, large(), LARGE));
            let both = subject.clock(&[plugs, unplugs].concat().repeat(4))?;
            if round > 0 {
                report.add(PLUG_SMALL, *contender, plugged);
                report.add(UNPLUG_SMALL, *contender, unplugged);
                report.add(BOTH_LARGE, *contender, both);
                report.add(NOTHING, *contender, subject.clock_nothing());
            }
        }
    }
    Ok(())
}
