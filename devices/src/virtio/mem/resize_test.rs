//! Row Q4 of `docs/virtio-mem.md`: resizes while requests are under way.

use std::ops::Range;

use proptest::prelude::*;

use super::test_machine::*;
use crate::virtio::test_driver::TransportKind;

/// One action of a driver that keeps to the rules, or of the host.
#[derive(Debug, Clone)]
enum Step {
    Plug { from: u64, at_most: u64 },
    Unplug { from: u64, at_most: u64 },
    UnplugAll,
    State { from: u64, at_most: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS, 1..100_u64);
    prop_oneof![
        8 => range.clone().prop_map(|(from, at_most)| Step::Plug { from, at_most }),
        8 => range.clone().prop_map(|(from, at_most)| Step::Unplug { from, at_most }),
        1 => Just(Step::UnplugAll),
        4 => range.prop_map(|(from, at_most)| Step::State { from, at_most }),
    ]
}

/// The first run, from block `from` on, of at most `at_most` blocks of which `wanted` is true.
fn run_of(
    blocks: &[bool],
    from: u64,
    at_most: u64,
    wanted: impl Fn(bool) -> bool,
) -> Option<Range<u64>> {
    let start = (from..blocks.len() as u64).find(|&i| wanted(blocks[i as usize]))?;
    let end = (start..blocks.len() as u64)
        .take(at_most as usize)
        .find(|&i| !wanted(blocks[i as usize]))
        .unwrap_or((start + at_most).min(blocks.len() as u64));
    Some(start..end)
}

proptest! {
    /// Each request is made available, then the requested size changes, and only then does the
    /// device see the request.
    #[test]
    fn q4_a_driver_that_keeps_to_the_rules_never_sees_an_error(
        steps in prop::collection::vec((step(), prop::option::of(0..=BLOCKS)), 1..80)
    ) {
        for on in TransportKind::ALL {
            let mut machine = TestMachine::up(on);
            let mut model = vec![false; BLOCKS as usize];
            for (step, resize) in steps.clone() {
                let before = machine.config();
                let usable = &model[..(before.usable_region_size / BLOCK) as usize];
                let (kind, blocks) = match step {
                    Step::Plug { from, at_most } => (PLUG, run_of(usable, from, at_most, |p| !p)),
                    Step::Unplug { from, at_most } => (UNPLUG, run_of(usable, from, at_most, |p| p)),
                    Step::State { from, at_most } => (STATE, run_of(usable, from, at_most, |_| true)),
                    Step::UnplugAll => (UNPLUG_ALL, Some(0..0)),
                };
                let Some(blocks) = blocks else { continue };
                let count = blocks.end - blocks.start;
                let chain = machine.write_request(kind, block(blocks.start), count as u16);
                let head = machine.driver.write_chain(&chain);
                machine.driver.publish(head);
                if let Some(resize) = resize {
                    machine.resize(resize);
                }
                machine.driver.kick();
                machine.driver.take_used();

                let requested = resize.unwrap_or(before.requested_size / BLOCK);
                let plugged = |model: &[bool]| model.iter().filter(|&&plugged| plugged).count() as u64;
                let range = blocks.start as usize..blocks.end as usize;
                let expected = match kind {
                    PLUG if plugged(&model) + count > requested => (NACK, 0),
                    PLUG => { model[range].fill(true); (ACK, 0) }
                    UNPLUG => { model[range].fill(false); (ACK, 0) }
                    UNPLUG_ALL => { model.fill(false); (ACK, 0) }
                    _ => match plugged(&model[range]) {
                        0 => (ACK, UNPLUGGED),
                        all if all == count => (ACK, PLUGGED),
                        _ => (ACK, MIXED),
                    },
                };
                prop_assert_eq!(machine.response_at(RESPONSE_AT), expected);
                prop_assert_eq!(&machine.memory.plugged(), &model);
                let now = machine.config();
                prop_assert_eq!(now.plugged_size, plugged(&model) * BLOCK);
                prop_assert_eq!(now.requested_size, requested * BLOCK);
                prop_assert_eq!(now.usable_region_size % BLOCK, 0);
                prop_assert!(now.requested_size <= now.usable_region_size);
                prop_assert!(now.usable_region_size <= now.region_size);
                prop_assert!(
                    kind == UNPLUG_ALL || now.usable_region_size >= before.usable_region_size
                );
            }
            machine.assert_unchanged_by(|_| {});
        }
    }
}
