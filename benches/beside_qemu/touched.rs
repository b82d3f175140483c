//! UNPLUG of memory that the guest has touched, by what it is made of: here the host takes memory back,
//! which is most of the work.
//!
//! The files are where temporary files are: on tmpfs in an emulated host.

use bare_metal::virtio_mem::{PLUG, UNPLUG};
use testvm::huge_pages::HugePagePool;
use vmm::memory::backing::HugePageSize;

use crate::{
    contender::{Backing, Contender, MemoryDevice, Programs},
    report::{Figure, Report},
    subject::Subject,
};

const REGION: u64 = 1 << 30;
const REQUESTED: u64 = 128 << 20;
const BYTES: u64 = 2 << 20;

const ANONYMOUS: Figure = Figure::request("UNPLUG of 2 MiB touched, anonymous", BYTES);
const MEMFD: Figure = Figure::request("UNPLUG of 2 MiB touched, memfd", BYTES);
const HUGETLB: Figure = Figure::request("UNPLUG of 2 MiB touched, hugetlb-2m", BYTES);
const FILE: Figure = Figure::request("UNPLUG of 2 MiB touched, file", BYTES);

const CASES: [(Contender, Backing, Figure); 6] = [
    (Contender::MOAT, Backing::Anonymous, ANONYMOUS),
    (Contender::MOAT_UNENFORCED, Backing::Anonymous, ANONYMOUS),
    (Contender::QEMU_Q35, Backing::Anonymous, ANONYMOUS),
    (Contender::MOAT, Backing::Memfd, MEMFD),
    (Contender::MOAT, Backing::Hugetlb, HUGETLB),
    (Contender::MOAT, Backing::File, FILE),
];

/// Has the guests plug, touch and unplug in turn.
pub fn section(programs: &Programs, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let pool = HugePagePool::with_free(HugePageSize::Size2M, REQUESTED / BYTES);
    let mut subjects = Vec::new();
    for (contender, backing, figure) in CASES {
        if let (Backing::Hugetlb, Err(error)) = (backing, &pool) {
            report.not_supported(figure, contender, &error.to_string());
            continue;
        }
        let device = MemoryDevice { size: REGION, requested: REQUESTED, backing };
        let subject = Subject::start(programs, contender, 1, device)?;
        subjects.push((contender, figure, subject));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: UNPLUG of touched memory");
        for (contender, figure, subject) in &mut subjects {
            let firsts = || 0..REQUESTED / subject.driver.block_size;
            let plugs = subject.requests(PLUG, firsts(), BYTES);
            let unplugs = subject.requests(UNPLUG, firsts(), BYTES);
            subject.clock(&plugs)?;
            subject.program.fill(subject.driver.address, REQUESTED);
            let unplugged = subject.clock(&unplugs)?;
            if round > 0 {
                report.add(*figure, *contender, unplugged);
            }
        }
    }
    Ok(())
}
