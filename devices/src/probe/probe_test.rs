//! The probe as the guest and the host see it.

use std::sync::Arc;

use super::test_machine::*;
use super::*;
use crate::dma::{DmaMemory, DmaPath};
use crate::pci::test_machine::Messages;
use crate::pci::{Access, BarIndex, Command, Direction, FunctionError, RefusalReason, ResetKind};

const MAGIC: u32 = 0x7461_6f6d;

#[test]
fn the_identity_reads_at_any_width_wherever_the_device_answers() {
    let machine = Machine::new();
    assert_eq!(machine.read_config(PROBE, 0), 0x6174_6d6f);
    assert_eq!(machine.read_config(PROBE, 8), 0xff00_0001);
    for length in [1, 2, 4, 8] {
        for offset in (0..8).step_by(length) {
            let bytes = machine.read_bytes(BAR0 + offset as u64, length);
            assert_eq!(bytes, b"moat\x01\0\0\0"[offset..][..length]);
        }
    }
    assert_eq!(machine.read(BAR0), MAGIC);
    assert_eq!(machine.read_bytes(BAR0 + 1, 2), b"oa");
    assert_eq!(machine.read(BAR4 + 0xc00), MAGIC);
    assert_eq!(machine.read_port(BAR5), MAGIC);
    assert_eq!(machine.read_port(BAR5 + 4), 1);
    machine.write(BAR0, 0);
    assert_eq!(machine.read(BAR0), MAGIC);
}

#[test]
fn scratch_areas_keep_what_is_written() {
    let machine = Machine::new();
    assert_eq!(machine.read_u64(BAR0 + SCRATCH), 0);
    machine.write_bytes(BAR0 + SCRATCH + 1, &[1, 2, 3, 4, 5, 6, 7, 8]);
    machine.write_bytes(BAR0 + SCRATCH + 3, &[9]);
    assert_eq!(machine.read_bytes(BAR0 + SCRATCH, 10), [0, 1, 2, 9, 4, 5, 6, 7, 8, 0]);
    let end = BAR0 + SCRATCH + 0x200;
    machine.write_bytes(end - 2, &[1, 2, 3, 4]);
    assert_eq!(machine.read(end - 2), 0x0201, "there is nothing behind");
    assert_eq!(machine.read(end), 0);
    machine.write_port(BAR5 + 8, 0x1234_5678);
    assert_eq!(machine.read_port(BAR5 + 8), 0x1234_5678);
}

#[test]
fn bar_2_is_memory() {
    let machine = Machine::new();
    let last = BAR2 + u64::from(RAM_SIZE) - 8;
    for address in [BAR2, BAR2 + 0x1003, last] {
        assert_eq!(machine.read_u64(address), 0);
        machine.write_bytes(address, &address.to_le_bytes());
    }
    for address in [BAR2, BAR2 + 0x1003, last] {
        assert_eq!(machine.read_u64(address), address);
    }
}

#[test]
fn the_rom_has_one_image_with_a_checksum() {
    let machine = Machine::new();
    let rom = machine.read_bytes(ROM, 0x800);
    assert_eq!(rom[..2], [0x55, 0xaa]);
    assert_eq!(usize::from(rom[2]) * 512, rom.len());
    assert_eq!(rom.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let data = &rom[u16::from_le_bytes([rom[0x18], rom[0x19]]).into()..];
    assert_eq!(data[..4], *b"PCIR");
    assert_eq!(data[4..8], machine.read_config(PROBE, 0).to_le_bytes());
    assert_eq!(data[0x0a..0x0c], [0x18, 0]);
    assert_eq!(data[0x0d..0x10], [0, 0, 0xff]);
    assert_eq!(usize::from(data[0x10]) * 512, rom.len());
    assert_eq!(data[0x15], 0x80);
    assert_eq!(machine.status().accesses, [AccessCounts::default(); 6]);
}

#[test]
fn accesses_are_counted_by_range() {
    let machine = Machine::new();
    for _ in 0..3 {
        machine.read(BAR2);
    }
    machine.write(BAR2 + 4, 0);
    machine.read(BAR4 + 0x900);
    machine.write_port(BAR5 + 8, 0);
    machine.write(BAR0, 0);
    assert_eq!(machine.read_u64(BAR0 + 0x60), 3, "reads of BAR 2");
    assert_eq!(machine.read_u64(BAR0 + 0x40), 2, "reads of BAR 0 count themselves");
    let counts = |reads, writes| AccessCounts { reads, writes };
    let expected =
        [counts(2, 1), counts(0, 0), counts(3, 1), counts(0, 0), counts(1, 0), counts(0, 1)];
    assert_eq!(machine.status().accesses, expected);
    for (bar, expected) in (0..).zip(expected).skip(1) {
        let at = BAR0 + 0x40 + 16 * bar;
        assert_eq!(
            (machine.read_u64(at), machine.read_u64(at + 8)),
            (expected.reads, expected.writes)
        );
    }
}

#[test]
fn an_access_that_the_function_does_not_decode_never_gets_to_the_device() {
    let machine = Machine::new();
    let before = machine.status();
    machine.enable(Command::IO | Command::MASTER);
    for address in [BAR0, BAR0 + SCRATCH, BAR2, BAR4 + 0xc00] {
        let Access::Refused(refusal) = machine.root.read_memory(address, &mut [0; 4]) else {
            panic!("{address:#x} is decoded");
        };
        assert_eq!((refusal.function, refusal.reason), (PROBE, RefusalReason::DecodingOff));
        assert_ne!(machine.root.write_memory(address, &[1; 4]), Access::Claimed);
    }
    assert_eq!(machine.status(), before);
}

#[test]
fn the_log_has_the_last_accesses() {
    let machine = Machine::new();
    machine.write_bytes(BAR2 + 3, &[1, 2]);
    machine.read(BAR0);
    machine.write_port(BAR5 + 8, 7);
    machine.write_bytes(BAR0 + SCRATCH, &[9; 12]);
    let access = |sequence, bar, offset, size, direction, value| LoggedAccess {
        sequence,
        bar,
        offset,
        size,
        direction,
        value,
    };
    let expected = [
        access(1, BarIndex::Bar2, 3, 2, Direction::Write, 0x0201),
        access(2, BarIndex::Bar0, 0, 4, Direction::Read, MAGIC.into()),
        access(3, BarIndex::Bar5, 8, 4, Direction::Write, 7),
        access(4, BarIndex::Bar0, SCRATCH, 12, Direction::Write, 0x0909_0909_0909_0909),
    ];
    assert_eq!(machine.status().log, expected);
    // The guest reads the same log, without its own reads of the log.
    let entry = |slot: u64| machine.read_bytes(BAR0 + 0x800 + 32 * slot, 32);
    let mut third = [3_u64, 8, 7].map(u64::to_le_bytes).concat();
    third.extend([4, 0, 0, 0, 5, 1, 0, 0]);
    assert_eq!(entry(2), third);
    assert_eq!(entry(1)[0x1c..], [0, 0, 0, 0], "BAR 0, read");
    assert_eq!(entry(4), [0; 32], "not used");
    machine.write(BAR0 + 0x800, 0);
    assert_eq!(machine.status().log, expected);
}

#[test]
fn the_log_is_a_ring_of_64() {
    let machine = Machine::new();
    for count in 1..=200_u64 {
        machine.write_bytes(BAR2 + 8 * count, &count.to_le_bytes());
        let log = machine.status().log;
        let sequences: Vec<_> = log.iter().map(|access| access.sequence).collect();
        let oldest = count.saturating_sub(63).max(1);
        assert_eq!(sequences, (oldest..=count).collect::<Vec<_>>());
        assert!(log.iter().all(|access| access.value == access.sequence));
    }
    // 200 = 3 * 64 + 8, and the first one is in entry 0.
    assert_eq!(machine.read_u64(BAR0 + 0x800 + 32 * 7), 200);
    assert_eq!(machine.read_u64(BAR0 + 0x800 + 32 * 8), 137);
    assert_eq!(machine.read_u64(BAR0 + 0x38), 200, "before this one");
    assert_eq!(machine.read_u64(BAR0 + 0x38), 201);
}

#[test]
fn msix_vectors_are_raised_on_request() {
    let machine = Machine::new();
    machine.enable_msix();
    for vector in [0, 7, 3, 3] {
        machine.write(BAR0 + INTERRUPT, vector);
        assert_eq!(machine.raised(), [vector]);
    }
    assert_eq!(machine.read(BAR0 + INTERRUPT), 3);
    for no_vector in [8, 0x10000, u32::MAX] {
        machine.write(BAR0 + INTERRUPT, no_vector);
    }
    machine.write_bytes(BAR0 + INTERRUPT + 1, &[0; 3]);
    assert!(machine.raised().is_empty(), "the lowest byte was not written");
    machine.write_bytes(BAR0 + INTERRUPT, &[5]);
    assert_eq!(machine.raised(), [5]);
    // Memory need not be decoded.
    machine.enable(Command::IO | Command::MASTER);
    machine.write_port(BAR5 + 0xc, 6);
    assert_eq!(machine.raised(), [6]);
    assert_eq!(machine.read_port(BAR5 + 0xc), 6);
}

#[test]
fn intx_has_the_level_that_is_written() {
    let machine = Machine::new();
    let interrupt_status = || machine.read_config(PROBE, 4) & 1 << 19 != 0;
    machine.write(BAR0 + INTX, 1);
    assert!(machine.line().level() && interrupt_status());
    machine.enable(Command::MEMORY | Command::INTX_DISABLE);
    assert!(!machine.line().level() && interrupt_status());
    machine.enable(Command::MEMORY);
    assert!(machine.line().level());
    machine.write(BAR0 + INTX, 2);
    assert!(!machine.line().level() && !interrupt_status());
}

fn reset(machine: &Machine, kind: ResetKind) {
    match kind {
        ResetKind::FunctionLevel => {
            machine.write_config(PROBE, machine.capability(PROBE, 0x10).unwrap() + 8, 1 << 15);
        }
        ResetKind::PowerManagement => {
            let control = machine.capability(PROBE, 0x01).unwrap() + 4;
            machine.write_config(PROBE, control, 3);
            machine.write_config(PROBE, control, 0);
        }
        ResetKind::Hot => {
            for secondary_bus_reset in [1 << 22, 0] {
                machine.write_config(PORT, 0x3c, secondary_bus_reset);
            }
        }
    }
}

#[test]
fn resets_of_all_kinds_are_counted_and_keep_only_counts_and_log() {
    for (kind, counter, counts) in [
        (ResetKind::FunctionLevel, 0x20, ResetCounts { function_level: 1, ..Default::default() }),
        (ResetKind::Hot, 0x28, ResetCounts { hot: 1, ..Default::default() }),
        (
            ResetKind::PowerManagement,
            0x30,
            ResetCounts { power_management: 1, ..Default::default() },
        ),
    ] {
        let machine = Machine::new();
        for address in [BAR0 + SCRATCH, BAR0 + BUFFER, BAR2] {
            machine.write(address, 1);
        }
        machine.write_port(BAR5 + 8, 1);
        machine.write(BAR0 + 0x118, 0);
        machine.write(BAR0 + INTX, 1);
        let before = machine.status();

        reset(&machine, kind);
        assert!(!machine.line().level());
        let Access::Refused(refusal) = machine.root.read_memory(BAR0, &mut [0; 4]) else {
            panic!("decoded after {kind:?}");
        };
        assert_eq!(refusal.reason, RefusalReason::Reset);
        assert_eq!(machine.status(), ProbeStatus { resets: counts, ..before });

        machine.configure();
        for offset in [0x20, 0x28, 0x30] {
            assert_eq!(machine.read_u64(BAR0 + offset), u64::from(offset == counter));
        }
        for address in [BAR0 + SCRATCH, BAR0 + BUFFER, BAR0 + INTX, BAR2] {
            assert_eq!(machine.read(address), 0);
        }
        assert_eq!(machine.read(BAR0 + 0x118), u32::MAX);
        assert_eq!(machine.read_port(BAR5 + 8), 0);
    }
}

#[test]
fn an_invalid_size_is_refused() {
    for size in [0, 3, 0x1800] {
        let probe = Probe::new(
            size,
            &DmaPath::direct(DmaMemory::default()),
            Arc::<Messages>::default(),
            Arc::<Doorbell>::default(),
        );
        assert!(matches!(probe, Err(FunctionError::Size { .. })));
    }
}
