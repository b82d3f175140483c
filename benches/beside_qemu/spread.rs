//! What a virtio-mem request costs where the region is of 1 TiB, beside one of 1 GiB: as many requests,
//! of 2 MiB each and as far apart as they can be.
//!
//! Nothing that a VMM has to do for a request depends on the size of the region. But what it has for
//! a piece of the region may be had when that is used first, so the first PLUGs are told apart: the
//! ones after UNPLUG_ALL.

use bare_metal::virtio_mem::{Answer, PLUG, UNPLUG};

use crate::{
    contender::{Backing, Contender, MemoryDevice, Programs},
    report::{Figure, Report},
    subject::Subject,
};

const BYTES: u64 = 2 << 20;
const REQUESTS: u64 = 64;

/// What is measured in a region.
struct Figures {
    region: u64,
    first_plug: Figure,
    plug: Figure,
    unplug: Figure,
}

const SMALL: Figures = Figures {
    region: 1 << 30,
    first_plug: Figure::request("first PLUG of 2 MiB in 1 GiB", BYTES),
    plug: Figure::request("another PLUG in 1 GiB", BYTES),
    unplug: Figure::request("UNPLUG of 2 MiB in 1 GiB", BYTES),
};

const LARGE: Figures = Figures {
    region: 1 << 40,
    first_plug: Figure::request("first PLUG of 2 MiB in 1 TiB", BYTES).beside(&SMALL.first_plug),
    plug: Figure::request("another PLUG in 1 TiB", BYTES).beside(&SMALL.plug),
    unplug: Figure::request("UNPLUG of 2 MiB in 1 TiB", BYTES).beside(&SMALL.unplug),
};

const CONTENDERS: [Contender; 3] =
    [Contender::MOAT, Contender::MOAT_UNENFORCED, Contender::QEMU_Q35];

/// How often a run repeats itself.
const TIMES: u32 = 4;

/// Has the guests make them in turn.
pub fn section(programs: &Programs, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut subjects = Vec::new();
    for contender in CONTENDERS {
        for figures in [SMALL, LARGE] {
            let size = figures.region;
            let device = MemoryDevice { size, requested: size, backing: Backing::Anonymous };
            let subject = Subject::start(programs, contender, 1, device)?;
            subjects.push((contender, figures, subject));
        }
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: requests in a large region");
        for (contender, figures, subject) in &mut subjects {
            let apart = figures.region / subject.driver.block_size / REQUESTS;
            let firsts = || (0..REQUESTS).map(|n| n * apart);
            let plugs = subject.requests(PLUG, firsts(), BYTES);
            let unplugs = subject.requests(UNPLUG, firsts(), BYTES);
            let mut sums = [0.0; 3];
            for _ in 0..TIMES {
                assert_eq!(subject.driver.unplug_all(&mut subject.program), Answer::Ack);
                sums[0] += subject.clock(&plugs)?;
                sums[2] += subject.clock(&unplugs)? / 2.0;
                sums[1] += subject.clock(&plugs)?;
                sums[2] += subject.clock(&unplugs)? / 2.0;
            }
            if round > 0 {
                let all = [figures.first_plug, figures.plug, figures.unplug];
                for (figure, sum) in all.into_iter().zip(sums) {
                    report.add(figure, *contender, sum / f64::from(TIMES));
                }
            }
        }
    }
    Ok(())
}
