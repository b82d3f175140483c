//! Requests of the driver (virtio 1.3, section 5.13.6), right and wrong.

use proptest::prelude::*;
use vm_memory::Permissions;

use super::test_machine::*;
use super::translations::MAX_MAPPINGS;
use crate::virtio::hostile_queue::{Fixture, hostile_queue_tests};
use crate::virtio::test_driver::{Rings, TransportKind, on_each_transport};

on_each_transport! {
    the_configuration_is_as_the_specification_has_it
    the_driver_writes_bypass_and_nothing_else
    without_bypass_config_the_driver_writes_nothing
    endpoints_without_a_domain_follow_bypass
    a_mapping_translates_what_its_flags_allow
    endpoints_of_a_domain_share_its_mappings_and_others_do_not
    an_endpoint_moves_to_another_domain
    a_domain_is_removed_with_its_last_endpoint
    a_bypass_domain_is_the_identity_and_has_no_mappings
    an_endpoint_that_does_not_exist_is_noent
    wrong_attach_requests_change_nothing
    wrong_detach_requests_change_nothing
    wrong_map_requests_change_nothing
    mappings_are_removed_as_a_whole
    wrong_unmap_requests_change_nothing
    the_number_of_mappings_is_limited
    features_that_were_not_negotiated_are_not_supported
    probe_reports_the_msi_window
    requests_that_are_cut_short_are_invalid
    a_chain_without_a_request_is_not_answered
    a_reset_keeps_nothing_but_bypass
}

const RW: u32 = READ | WRITE;

fn fixture(on: TransportKind) -> Fixture {
    let driver = TestMachine::up(on).driver;
    let request = TestMachine::store_attach(&driver);
    Fixture { driver, request, answer: 4 }
}

hostile_queue_tests!(fixture);

/// A machine with endpoint 0 in domain 1.
fn attached(on: TransportKind) -> TestMachine {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.attach(1, 0), OK);
    machine
}

fn the_configuration_is_as_the_specification_has_it(on: TransportKind) {
    let mut machine = TestMachine::new(on);
    assert_eq!(machine.driver.offered_features() & 0xff, FEATURES);
    let mut config = [0xa5; 48];
    machine.driver.read_config(0, &mut config);
    let u64_at = |at: usize| u64::from_le_bytes(config[at..at + 8].try_into().unwrap());
    assert_eq!(u64_at(0), !0xfff);
    assert_eq!((u64_at(8), u64_at(16)), (0, (1 << 48) - 1));
    assert_eq!(u64_at(24), 0xffff << 32);
    assert_eq!(u64_at(32), 1 << 32 | 64);
    assert_eq!(u64_at(40), 0);
}

fn the_driver_writes_bypass_and_nothing_else(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let config = |machine: &mut TestMachine| {
        let mut config = [0; 40];
        machine.driver.read_config(0, &mut config);
        config
    };
    let mut expected = config(&mut machine);
    assert_eq!(expected[36], 1);
    for value in [0, 1, 0] {
        machine.driver.write_config(36, &[value]);
        expected[36] = value;
        assert_eq!(config(&mut machine), expected);
    }
    for value in [2, 0x80, 0xff] {
        machine.driver.write_config(36, &[value]);
        assert_eq!(config(&mut machine), expected, "invalid value {value}");
    }
    for offset in (0..36).chain(37..64) {
        machine.driver.write_config(offset, &[1]);
        assert_eq!(config(&mut machine), expected, "at {offset}");
    }
    // A wider write that contains it sets it.
    machine.driver.write_config(32, &[9, 9, 9, 9, 1, 9, 9, 9]);
    expected[36] = 1;
    assert_eq!(config(&mut machine), expected);
    machine.driver.write_config(36, &0_u32.to_le_bytes());
    assert!(!machine.translations.status().bypass);
}

fn without_bypass_config_the_driver_writes_nothing(on: TransportKind) {
    let mut machine = TestMachine::new(on);
    machine.driver.write_config(36, &[0]);
    assert!(machine.translations.status().bypass);
    machine.driver.bring_up(FEATURES & !BYPASS_CONFIG, Rings::default());
    machine.driver.write_config(36, &[0]);
    assert!(machine.translations.status().bypass);
}

fn endpoints_without_a_domain_follow_bypass(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.translate(7, 0x1234, Permissions::Write), Some(0x1234));
    assert_eq!(machine.translate(0, 0x1234, Permissions::Write), None);
    machine.driver.write_config(36, &[0]);
    assert_eq!(machine.translate(7, 0x1234, Permissions::Write), None);
    machine.driver.write_config(36, &[1]);
    assert_eq!(machine.detach(1, 0), OK);
    assert_eq!(machine.translate(0, 0x1234, Permissions::Write), Some(0x1234));
}

fn a_mapping_translates_what_its_flags_allow(on: TransportKind) {
    let mut machine = attached(on);
    for (page, flags) in (0..).zip(0..8) {
        let first = page * 0x1000;
        assert_eq!(machine.map(1, first, first + 0xfff, 0x10_0000 + first, flags), OK);
        let physical = Some(0x10_0000 + first + 5);
        let read = machine.translate(0, first + 5, Permissions::Read);
        assert_eq!(read, physical.filter(|_| flags & READ != 0), "{flags:#x}");
        let write = machine.translate(0, first + 5, Permissions::Write);
        assert_eq!(write, physical.filter(|_| flags & WRITE != 0), "{flags:#x}");
    }
    assert_eq!(machine.translate(0, 0x8000, Permissions::Read), None);
}

fn endpoints_of_a_domain_share_its_mappings_and_others_do_not(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.attach(1, 1), OK);
    assert_eq!(machine.attach(2, 2), OK);
    assert_eq!(machine.map(1, 0, 0xfff, 0x5000, RW), OK);
    assert_eq!(machine.map(2, 0, 0xfff, 0x6000, RW), OK);
    assert_eq!(machine.attach(1, 3), OK);
    let places = [0, 1, 2, 3].map(|id| machine.translate(id, 0, Permissions::Read));
    assert_eq!(places, [0x5000, 0x5000, 0x6000, 0x5000].map(Some));
}

fn an_endpoint_moves_to_another_domain(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.attach(2, 1), OK);
    assert_eq!(machine.map(1, 0, 0xfff, 0x5000, RW), OK);
    assert_eq!(machine.map(2, 0, 0xfff, 0x6000, RW), OK);
    assert_eq!(machine.attach(1, 0), OK, "where it is already");
    assert_eq!(machine.translate(0, 0, Permissions::Read), Some(0x5000));
    assert_eq!(machine.attach(2, 0), OK);
    assert_eq!(machine.translate(0, 0, Permissions::Read), Some(0x6000));
    assert_eq!(machine.unmap(1, 0, 0xfff), NOENT, "it was the last one there");
    assert_eq!(machine.mappings(), 1);
}

fn a_domain_is_removed_with_its_last_endpoint(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.attach(1, 1), OK);
    assert_eq!(machine.map(1, 0, 0xfff, 0x5000, RW), OK);
    assert_eq!(machine.detach(1, 0), OK);
    assert_eq!(machine.translate(1, 0, Permissions::Read), Some(0x5000));
    assert_eq!(machine.mappings(), 1);
    assert_eq!(machine.detach(1, 1), OK);
    assert_eq!((machine.mappings(), machine.translations.status().domains), (0, 0));
    // A new domain with that ID has none of its mappings, and may be of another kind.
    assert_eq!(machine.attach(1, 1), OK);
    assert_eq!(machine.translate(1, 0, Permissions::Read), None);
    assert_eq!(machine.detach(1, 1), OK);
    assert_eq!(machine.attach_bypass(1, 1), OK);
}

fn a_bypass_domain_is_the_identity_and_has_no_mappings(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.driver.write_config(36, &[0]);
    assert_eq!(machine.attach_bypass(1, 0), OK);
    assert_eq!(machine.translate(0, 0x1234, Permissions::Write), Some(0x1234));
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), INVAL);
    assert_eq!(machine.unmap(1, 0, 0xfff), INVAL);
    // All endpoints of a domain must agree on its kind.
    assert_eq!(machine.attach(1, 1), INVAL);
    assert_eq!(machine.attach_bypass(1, 1), OK);
    assert_eq!(machine.attach(2, 2), OK);
    assert_eq!(machine.attach_bypass(2, 1), INVAL);
    assert_eq!(machine.translate(1, 0, Permissions::Read), Some(0), "it stays where it was");
}

fn an_endpoint_that_does_not_exist_is_noent(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    for endpoint in ENDPOINTS {
        assert_eq!(machine.attach(1, endpoint), OK, "{endpoint:#x}");
        assert_eq!(machine.detach(1, endpoint), OK, "{endpoint:#x}");
    }
    for endpoint in [0x1_0000, 0x1_ffff, 0x2_0001, u32::MAX] {
        assert_eq!(machine.attach(1, endpoint), NOENT, "{endpoint:#x}");
        assert_eq!(machine.detach(1, endpoint), NOENT, "{endpoint:#x}");
        assert_eq!(machine.send(&probe(endpoint), 68)[64], NOENT, "{endpoint:#x}");
    }
    assert_eq!(machine.translations.status().endpoints, []);
}

fn wrong_attach_requests_change_nothing(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    for flags in [2, 3, 1 << 31, u32::MAX] {
        assert_eq!(machine.request(&attach(1, 0, flags)), INVAL, "{flags:#x}");
    }
    for reserved in 16..20 {
        let mut request = attach(1, 0, 0);
        request[reserved] = 1;
        assert_eq!(machine.request(&request), INVAL);
    }
    for domain in [0x1_0000, u32::MAX] {
        assert_eq!(machine.attach(domain, 0), RANGE);
    }
    assert_eq!(machine.translations.status().domains, 0);
    assert_eq!(machine.attach(0xffff, 0), OK);
    assert_eq!(machine.attach(0, 1), OK);
}

fn wrong_detach_requests_change_nothing(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.attach(2, 1), OK);
    for (domain, endpoint) in [(1, 1), (2, 0), (3, 0), (u32::MAX, 0), (1, 2)] {
        assert_eq!(machine.detach(domain, endpoint), INVAL);
    }
    assert_eq!(machine.translations.status().domains, 2);
}

fn wrong_map_requests_change_nothing(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.map(1, 0x10_0000, 0x10_2fff, 0, RW), OK);
    let end = (1 << 48) - 1;
    for (first, last, physical, flags, status) in [
        // Not of whole pages.
        (1, 0xfff, 0, RW, RANGE),
        (0, 0xffe, 0, RW, RANGE),
        (0, 0x1000, 0, RW, RANGE),
        (0, 0xfff, 0x800, RW, RANGE),
        // Beyond the address space.
        (end + 1, end + 0x1000, 0, RW, RANGE),
        (end - 0xfff, end + 0x1000, 0, RW, RANGE),
        (0, u64::MAX, 0, RW, RANGE),
        (u64::MAX - 0xfff, u64::MAX, 0, RW, RANGE),
        (0, 0x1fff, u64::MAX - 0xfff, RW, RANGE),
        (0, end, u64::MAX - 0xfff, RW, RANGE),
        // No range at all.
        (0x1000, 0xfff, 0, RW, INVAL),
        (u64::MAX, 0, 0, RW, INVAL),
        (0, 0, 0, RW, INVAL),
        // Flags that do not exist.
        (0, 0xfff, 0, 8, INVAL),
        (0, 0xfff, 0, 1 << 31 | RW, INVAL),
        // Mapped already, in whole or in part.
        (0x10_0000, 0x10_2fff, 0, RW, INVAL),
        (0x10_1000, 0x10_1fff, 0, RW, INVAL),
        (0x10_2000, 0x10_3fff, 0, RW, INVAL),
        (0xf_f000, 0x10_0fff, 0, RW, INVAL),
        (0, 0x20_0fff, 0, RW, INVAL),
        // In the window of message-signalled interrupts.
        (0xfee0_0000, 0xfee0_0fff, 0, RW, INVAL),
        (0xfeef_f000, 0xfef0_0fff, 0, RW, INVAL),
        (0x8000_0000, end, 0, RW, INVAL),
    ] {
        let answer = machine.map(1, first, last, physical, flags);
        assert_eq!(answer, status, "{first:#x}-{last:#x} {physical:#x} {flags:#x}");
    }
    assert_eq!(machine.map(2, 0, 0xfff, 0, RW), NOENT);
    assert_eq!(machine.map(u32::MAX, 0, 0xfff, 0, RW), NOENT);
    assert_eq!(machine.mappings(), 1);
    for (first, last) in
        [(0, 0xf_ffff), (0x10_3000, 0xfedf_ffff), (0xfef0_0000, end - 0x1000), (end - 0xfff, end)]
    {
        assert_eq!(machine.map(1, first, last, 0, RW | MMIO), OK, "{first:#x}-{last:#x}");
    }
}

/// The examples of section 5.13.6.6, with pages for addresses.
fn mappings_are_removed_as_a_whole(on: TransportKind) {
    type Pages = (u64, u64);
    let examples: [(&[Pages], Pages, u8, usize); 7] = [
        (&[], (0, 4), OK, 0),
        (&[(0, 9)], (0, 9), OK, 0),
        (&[(0, 4), (5, 9)], (0, 9), OK, 0),
        (&[(0, 9)], (0, 4), RANGE, 1),
        (&[(0, 4), (5, 9)], (0, 4), OK, 1),
        (&[(0, 4)], (0, 9), OK, 0),
        (&[(0, 4), (10, 14)], (0, 14), OK, 0),
    ];
    let bytes = |(first, last): Pages| (first * 0x1000, last * 0x1000 + 0xfff);
    for (number, (mapped, unmapped, status, left)) in (1..).zip(examples) {
        let mut machine = attached(on);
        for &pages in mapped {
            let (first, last) = bytes(pages);
            assert_eq!(machine.map(1, first, last, 0, RW), OK);
        }
        let (first, last) = bytes(unmapped);
        assert_eq!(machine.unmap(1, first, last), status, "example {number}");
        assert_eq!(machine.mappings(), left, "example {number}");
    }
}

fn wrong_unmap_requests_change_nothing(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.map(1, 0x1000, 0x3fff, 0, RW), OK);
    assert_eq!(machine.map(1, 0x4000, 0x4fff, 0, RW), OK);
    for (first, last) in
        [(0, 0x3ffe), (0x1001, 0x3fff), (0x2000, 0x2000), (0x2000, u64::MAX), (0x3fff, 0x4fff)]
    {
        assert_eq!(machine.unmap(1, first, last), RANGE, "{first:#x}-{last:#x}");
    }
    assert_eq!(machine.unmap(1, 0x2000, 0x1fff), INVAL);
    assert_eq!(machine.unmap(1, u64::MAX, 0), INVAL);
    for reserved in 24..28 {
        let mut request = unmap(1, 0x1000, 0x3fff);
        request[reserved] = 1;
        assert_eq!(machine.request(&request), INVAL);
    }
    assert_eq!(machine.unmap(2, 0, u64::MAX), NOENT);
    assert_eq!(machine.mappings(), 2);
    // To unmap a range without mappings succeeds.
    assert_eq!(machine.unmap(1, 0x5000, u64::MAX), OK);
    assert_eq!(machine.unmap(1, 0, u64::MAX), OK);
    assert_eq!(machine.mappings(), 0);
}

fn the_number_of_mappings_is_limited(on: TransportKind) {
    let mut machine = attached(on);
    assert_eq!(machine.attach(2, 1), OK);
    machine.translations.fill(2, MAX_MAPPINGS - 1);
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), OK);
    assert_eq!(machine.map(1, 0x1000, 0x1fff, 0, RW), NOMEM);
    assert_eq!(machine.mappings(), MAX_MAPPINGS);
    assert_eq!(machine.unmap(1, 0, 0xfff), OK);
    assert_eq!(machine.map(1, 0x1000, 0x1fff, 0, RW), OK);
    assert_eq!(machine.detach(2, 1), OK);
    assert_eq!(machine.mappings(), 1);
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), OK);
}

fn features_that_were_not_negotiated_are_not_supported(on: TransportKind) {
    let mut machine = TestMachine::new(on);
    machine.driver.bring_up(0, Rings::default());
    assert_eq!(machine.attach_bypass(1, 0), INVAL);
    assert_eq!(machine.attach(1, 0), OK);
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), UNSUPP);
    assert_eq!(machine.unmap(1, 0, 0xfff), UNSUPP);
    machine.driver.bring_up(MAP_UNMAP, Rings::default());
    assert_eq!(machine.attach(1, 0), OK);
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW | MMIO), INVAL);
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), OK);
    assert_eq!(machine.unmap(1, 0, 0xfff), OK);
}

fn probe_reports_the_msi_window(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let mut expected = vec![1, 0, 20, 0, 1, 0, 0, 0];
    expected.extend(0xfee0_0000_u64.to_le_bytes());
    expected.extend(0xfeef_ffff_u64.to_le_bytes());
    expected.resize(68, 0);
    assert_eq!(machine.send(&probe(0), 68), expected);
    assert_eq!(machine.send(&probe(0), 100), expected);
    // If not all properties fit, the status is still written, behind the room for them.
    for room in 4..68 {
        let mut expected = vec![0; room];
        expected[room - 4] = INVAL;
        assert_eq!(machine.send(&probe(0), room as u32), expected, "{room}");
    }
}

fn requests_that_are_cut_short_are_invalid(on: TransportKind) {
    let mut machine = attached(on);
    for request in [attach(2, 0, 0), detach(1, 0), map(1, 0, 0xfff, 0, RW), unmap(1, 0, 0xfff)] {
        for length in 4..request.len() {
            assert_eq!(machine.request(&request[..length]), INVAL);
        }
        for room in 0..4 {
            assert_eq!(machine.send(&request, room), [], "no room for a status");
        }
    }
    assert_eq!(machine.send(&probe(0)[..71], 68)[64], INVAL);
    let status = machine.translations.status();
    assert_eq!((status.domains, status.mappings, status.endpoints[0].domain), (1, 0, Some(1)));
    // Bytes that follow a request are ignored.
    let long = [map(1, 0, 0xfff, 0, RW), vec![0xff; 20]].concat();
    assert_eq!(machine.send(&long, 40), [OK, 0, 0, 0]);
}

fn a_chain_without_a_request_is_not_answered(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    for kind in (0..=u8::MAX).filter(|kind| !(1..=5).contains(kind)) {
        let mut request = attach(1, 0, 0);
        request[0] = kind;
        assert_eq!(machine.send(&request, 68), []);
    }
    for length in 0..4 {
        assert_eq!(machine.send(&attach(1, 0, 0)[..length], 68), []);
    }
    assert_eq!(machine.translations.status().domains, 0);
    assert_eq!(machine.attach(1, 0), OK);
}

fn a_reset_keeps_nothing_but_bypass(on: TransportKind) {
    let mut machine = attached(on);
    machine.driver.write_config(36, &[0]);
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), OK);
    assert!(machine.translate(0, 0, Permissions::Read).is_some());
    machine.driver.reset();
    assert_eq!(machine.translate(0, 0, Permissions::Read), None);
    let status = machine.translations.status();
    assert_eq!((status.bypass, status.domains, status.mappings), (false, 0, 0));
    machine.driver.bring_up(FEATURES, Rings::default());
    assert_eq!(machine.map(1, 0, 0xfff, 0, RW), NOENT);
    assert_eq!(machine.attach(1, 0), OK);
}

#[derive(Debug, Clone)]
struct AnyRequest(Vec<u8>);

fn any_request() -> impl Strategy<Value = AnyRequest> {
    let id = || prop_oneof![4 => 0..3_u32, 1 => any::<u32>()];
    let address = || {
        prop_oneof![
            6 => (0..40_u64).prop_map(|page| page * 0x1000),
            1 => any::<u64>(),
            1 => Just(u64::MAX),
        ]
    };
    let last = || address().prop_map(|address| address.wrapping_sub(1));
    let bytes = prop_oneof![
        3 => (id(), id(), 0..4_u32).prop_map(|(domain, endpoint, flags)| attach(domain, endpoint, flags)),
        2 => (id(), id()).prop_map(|(domain, endpoint)| detach(domain, endpoint)),
        6 => (id(), address(), last(), address(), 0..16_u32)
            .prop_map(|(domain, first, last, to, flags)| map(domain, first, last, to, flags)),
        3 => (id(), address(), last()).prop_map(|(domain, first, last)| unmap(domain, first, last)),
        1 => id().prop_map(probe),
        1 => prop::collection::vec(any::<u8>(), 0..80),
    ];
    bytes.prop_map(AnyRequest)
}

proptest! {
    /// After any requests, the device's counters are right, and no domain outlives its last endpoint.
    #[test]
    fn any_requests_leave_the_device_consistent(
        requests in prop::collection::vec((any_request(), 0..80_u32), 1..100)
    ) {
        let mut machine = TestMachine::up(TransportKind::Mmio);
        for (AnyRequest(bytes), room) in &requests {
            machine.send(bytes, *room);
            machine.translations.assert_in_order();
        }
        for endpoint in machine.translations.status().endpoints {
            if let Some(domain) = endpoint.domain {
                prop_assert_eq!(machine.detach(domain, endpoint.id), OK);
            }
        }
        let status = machine.translations.status();
        prop_assert_eq!((status.domains, status.mappings), (0, 0));
    }
}
