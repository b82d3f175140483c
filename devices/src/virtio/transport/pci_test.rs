//! virtio-pci (virtio 1.3, section 4.1): what differs from other transports. All accesses go through
//! the root complex.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use virtio_driver::{cfg_type, field, field_of};

use super::transport_test::{BUFFER, FEATURE_A, RING_RESET, Stub, VERSION_1, second_rings, stub};
use crate::pci::{Access, FunctionAddress, RootComplex};
use crate::virtio::DeviceStatus;
use crate::virtio::rng::Rng;
use crate::virtio::test_driver::memory::BUFFERS;
use crate::virtio::test_driver::pci::{PciRegisters, config};
use crate::virtio::test_driver::{
    Buffer, CONFIG_CHANGE, Register, Rings, TestDriver, TransportKind, USED_BUFFER,
};

/// VIRTIO_MSI_NO_VECTOR (section 4.1.5.1.2).
const NO_VECTOR: u64 = 0xffff;

/// A device and its driver, which has both queues up and works on the first.
fn up() -> (Arc<Stub>, TestDriver) {
    let (device, mut driver) = stub(TransportKind::Pci);
    bring_up(&mut driver);
    (device, driver)
}

fn bring_up(driver: &mut TestDriver) {
    assert!(driver.negotiate(VERSION_1 | FEATURE_A | RING_RESET));
    assert!(driver.set_up_queue(1, second_rings()));
    assert!(driver.set_up_queue(0, Rings::default()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.interrupts.take();
    driver.take_interrupt_status();
    driver.doorbells.take();
}

/// Reads one byte at `offset` of the structure of that kind.
fn read_u8(driver: &mut TestDriver, cfg_type: u8, offset: u32) -> u8 {
    let structure = driver.pci().structure(cfg_type).unwrap();
    let mut data = [0xa5];
    driver.read_at((structure.offset + offset).into(), &mut data);
    data[0]
}

fn isr_status(driver: &mut TestDriver) -> u32 {
    read_u8(driver, cfg_type::ISR, 0).into()
}

/// Data of the messages since the last call: vectors, as the driver numbers them.
fn vectors(driver: &mut TestDriver) -> Vec<u32> {
    driver.pci().messages.take().into_iter().map(|message| message.data).collect()
}

#[test]
fn the_header_identifies_the_device() {
    let rng = || Arc::new(Rng::new(Box::new(std::io::empty())));
    let mut entropy = TestDriver::new(TransportKind::Pci, rng());
    let (_, mut memory) = stub(TransportKind::Pci);
    for (driver, device_type, class) in [(&mut entropy, 4, 0x00ff00), (&mut memory, 24, 0x050000)] {
        let pci = driver.pci();
        let device = 0x1040 + device_type;
        assert_eq!(pci.config_u32(0x00), device << 16 | 0x1af4);
        assert_eq!(pci.config_u32(0x08), class << 8 | 1, "class code and revision");
        assert_eq!(pci.config_u32(0x2c), device << 16 | 0x1af4, "subsystem");
        assert_eq!(pci.config_u8(0x3d), 1, "interrupt pin");
        for id in [config::POWER_MANAGEMENT, config::EXPRESS] {
            pci.capability(id);
        }
    }
}

#[test]
fn structures_have_pages_of_their_own_apart_from_msix() {
    let (_, mut driver) = stub(TransportKind::Pci);
    let pci = driver.pci();
    let kinds = [cfg_type::COMMON, cfg_type::NOTIFY, cfg_type::ISR, cfg_type::DEVICE];
    let structures = kinds.map(|kind| pci.structure(kind).unwrap());
    let (bar, size) = size_of_bar(pci, 0);
    assert_eq!(bar & 0xf, 0, "memory of 32 bits, not prefetchable");
    let mut pages: Vec<u32> = structures.iter().map(|s| s.offset / 0x1000).collect();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), structures.len());
    for structure in structures {
        assert_eq!((structure.bar, structure.offset % 0x1000), (0, 0));
        assert!(u64::from(structure.offset + structure.length) <= size);
    }
    // Lengths that Linux insists on; the last one is that of `virtio_mem_config`.
    for (structure, length) in structures.iter().zip([60, 2, 1, 56]) {
        assert!(structure.length >= length);
    }
    let msix = pci.capability(config::MSIX);
    let [table, pending] =
        [config::MSIX_TABLE, config::MSIX_PENDING].map(|offset| pci.config_u32(msix + offset));
    assert_eq!((table & 7, pending & 7), (2, 2));
    assert_eq!(pci.vectors(), 3, "one for each queue and one for the configuration");
    let (_, size) = size_of_bar(pci, 2);
    assert!(u64::from(pending & !7) + 8 <= size);
}

/// The value of a BAR's register, and the BAR's size.
fn size_of_bar(pci: &PciRegisters, number: usize) -> (u32, u64) {
    let register = config::BASE_ADDRESS + 4 * number;
    let before = pci.config_u32(register);
    pci.write_config_space(register, &[0xff; 4]);
    let sized = pci.config_u32(register) & !0xf;
    pci.write_config_space(register, &before.to_le_bytes());
    (before, u64::from(sized.wrapping_neg()))
}

#[test]
fn fields_are_accessed_at_their_width() {
    let (_, mut driver) = stub(TransportKind::Pci);
    let mut fields: Vec<(u64, usize)> = Register::ALL.map(field_of).to_vec();
    fields.extend([
        field::CONFIG_MSIX_VECTOR,
        field::NUM_QUEUES,
        field::QUEUE_MSIX_VECTOR,
        field::QUEUE_NOTIFY_OFF,
        field::QUEUE_NOTIFY_DATA,
    ]);
    // Those of 64 bits are two of 32 bits.
    let fields: Vec<(u64, usize)> = fields
        .into_iter()
        .flat_map(|(offset, width)| {
            (0..width.div_ceil(4)).map(move |half| (offset + 4 * half as u64, width.min(4)))
        })
        .collect();
    let common = driver.pci().structure(cfg_type::COMMON).unwrap().offset;
    for offset in 0..0x100_u64 {
        for width in [1, 2, 3, 4, 5, 8, 16] {
            if fields.contains(&(offset, width)) {
                continue;
            }
            driver.write_at(u64::from(common) + offset, &vec![0xff; width]);
            let mut data = vec![0xa5; width];
            driver.read_at(u64::from(common) + offset, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
        }
    }
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(driver.read(Register::DriverFeatureSelect), 0);
    assert_eq!(driver.read(Register::QueueSelect), 0);
    assert_eq!(driver.read(Register::QueueSize), 128);
}

#[test]
fn what_is_written_is_read_back() {
    let (_, mut driver) = stub(TransportKind::Pci);
    assert_eq!(driver.read_field(field::NUM_QUEUES), 2);
    assert_eq!(driver.read_field(field::QUEUE_NOTIFY_DATA), 0);
    let addresses = [Register::QueueDesc, Register::QueueDriver, Register::QueueDevice];
    for (queue, base) in [(0_u64, 0x1111_2222_3333_4440_u64), (1, 0x5555_6666_7777_8880)] {
        driver.write(Register::QueueSelect, queue);
        assert_eq!(driver.read(Register::QueueSelect), queue);
        for (register, address) in addresses.into_iter().zip(base..) {
            driver.write(register, address);
        }
        driver.write(Register::QueueSize, 4);
    }
    driver.write(Register::QueueSelect, 0);
    for (register, address) in addresses.into_iter().zip(0x1111_2222_3333_4440..) {
        assert_eq!(driver.read(register), address);
        let (offset, _) = field_of(register);
        driver.write_field((offset + 4, 4), 0xaaaa_bbbb);
        assert_eq!(driver.read(register), 0xaaaa_bbbb << 32 | address & 0xffff_ffff);
        driver.write_field((offset, 4), 0xcccc_dddd);
        assert_eq!(driver.read(register), 0xaaaa_bbbb_cccc_dddd);
    }
    for register in [Register::DeviceFeatureSelect, Register::DriverFeatureSelect] {
        driver.write(register, 0xffff_fffe);
        assert_eq!(driver.read(register), 0xffff_fffe);
    }
    for (select, features, expected) in [(0, 0xf0, 0xf0), (1, 0xf1, 0xf1), (2, 0xf2, 0)] {
        driver.write(Register::DriverFeatureSelect, select);
        driver.write(Register::DriverFeature, features);
        assert_eq!(driver.read(Register::DriverFeature), expected);
    }
    // An invalid size reads as 0.
    for (size, expected) in [(128, 128), (3, 0), (0, 0), (0xffff, 0), (64, 64)] {
        driver.write(Register::QueueSize, size);
        assert_eq!(driver.read(Register::QueueSize), expected);
    }
    for register in [Register::QueueSize, Register::QueueDesc, Register::QueueEnable] {
        driver.write(Register::QueueSelect, 2);
        driver.write(register, 1);
        assert_eq!(driver.read(register), 0, "there is no such queue");
    }
}

#[test]
fn a_queue_is_not_disabled_but_by_a_reset() {
    let (_, mut driver) = up();
    for value in [0, 2, 0xffff] {
        driver.write(Register::QueueEnable, value);
        assert_eq!(driver.read(Register::QueueEnable), 1);
    }
    driver.send(&[BUFFER]);
    driver.write(Register::QueueReset, 1);
    for value in [0, 2, 0xffff] {
        driver.write(Register::QueueEnable, value);
        assert_eq!(driver.read(Register::QueueEnable), 0);
    }
}

#[test]
fn any_write_to_the_notify_structure_is_a_notification() {
    let (_, mut driver) = up();
    let notify = driver.pci().structure(cfg_type::NOTIFY).unwrap();
    driver.doorbells.take();
    let offsets = [0, 1, 2, notify.length / 2, notify.length - 8];
    for (offset, width) in offsets.into_iter().zip([2, 1, 4, 8, 8]) {
        driver.write_at((notify.offset + offset).into(), &[0xff; 8][..width]);
        assert_eq!(driver.doorbells.take(), 1);
        assert_eq!(read_u8(&mut driver, cfg_type::NOTIFY, offset), 0);
    }
    assert_eq!(driver.doorbells.take(), 0, "a read is not a notification");
}

#[test]
fn the_bar_of_msix_has_nothing_else() {
    let (_, mut driver) = up();
    let up = driver.status();
    let pci = driver.pci();
    let table_end = 16 * u64::from(pci.vectors());
    for offset in table_end..0x4000 {
        let address = PciRegisters::bar(2) + offset;
        assert_eq!(pci.root.write_memory(address, &[0]), Access::Claimed);
        let mut data = [0xa5];
        assert_eq!(pci.root.read_memory(address, &mut data), Access::Claimed);
        assert_eq!(data, [0]);
    }
    assert_eq!(driver.status(), up);
    assert_eq!(driver.doorbells.take(), 0);
}

#[test]
fn each_event_interrupts_with_its_vector() {
    let (_, mut driver) = up();
    driver.config_changed();
    assert_eq!(vectors(&mut driver), [0]);
    driver.send(&[BUFFER]);
    assert_eq!(vectors(&mut driver), [1]);
    assert_eq!(isr_status(&mut driver), CONFIG_CHANGE, "the queue's bit is for INTx alone");
    // Any vector may be used, also for more than one event.
    driver.write_field(field::CONFIG_MSIX_VECTOR, 2);
    driver.write_field(field::QUEUE_MSIX_VECTOR, 2);
    assert_eq!(driver.read_field(field::CONFIG_MSIX_VECTOR), 2);
    assert_eq!(driver.read_field(field::QUEUE_MSIX_VECTOR), 2);
    driver.send(&[BUFFER]);
    driver.config_changed();
    assert_eq!(vectors(&mut driver), [2, 2]);
    // The other queue has its own.
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    assert!(driver.set_up_queue(0, Rings::default()));
    assert!(driver.set_up_queue(1, second_rings()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.send(&[BUFFER]);
    assert_eq!(vectors(&mut driver), [2]);
    assert!(!driver.pci().line.level());
}

#[test]
fn an_event_without_a_vector_does_not_interrupt() {
    let (_, mut driver) = up();
    for vector in [NO_VECTOR, 3, 0x7ff, 0x800, 0xfffe] {
        for field in [field::CONFIG_MSIX_VECTOR, field::QUEUE_MSIX_VECTOR] {
            driver.write_field(field, 1);
            driver.write_field(field, vector);
            assert_eq!(driver.read_field(field), NO_VECTOR, "{vector:#x}");
        }
        driver.send(&[BUFFER]);
        driver.config_changed();
        assert!(vectors(&mut driver).is_empty());
    }
    driver.write_field(field_of(Register::QueueSelect), 2);
    driver.write_field(field::QUEUE_MSIX_VECTOR, 1);
    assert_eq!(driver.read_field(field::QUEUE_MSIX_VECTOR), NO_VECTOR, "no such queue");
}

#[test]
fn resets_unmap_vectors() {
    let (_, mut driver) = up();
    let mapped = |driver: &mut TestDriver| {
        let config = driver.read_field(field::CONFIG_MSIX_VECTOR);
        let queues = [0, 1].map(|queue| {
            driver.write(Register::QueueSelect, queue);
            driver.read_field(field::QUEUE_MSIX_VECTOR)
        });
        (config, queues)
    };
    assert_eq!(mapped(&mut driver), (0, [1, 2]));
    driver.write(Register::QueueSelect, 0);
    driver.write(Register::QueueReset, 1);
    assert_eq!(mapped(&mut driver), (0, [NO_VECTOR, 2]));
    driver.reset();
    assert_eq!(mapped(&mut driver), (NO_VECTOR, [NO_VECTOR; 2]));
}

#[test]
fn without_msix_the_isr_status_has_the_event_and_reading_it_ends_the_interrupt() {
    let (_, mut driver) = up();
    driver.pci().enable_msix(false);
    let interrupt_status = |driver: &mut TestDriver| {
        let pending = driver.pci().config_u16(config::STATUS) & config::STATUS_INTERRUPT != 0;
        assert_eq!(driver.pci().line.level(), pending);
        pending
    };
    assert!(!interrupt_status(&mut driver));
    for expected in [USED_BUFFER, CONFIG_CHANGE, USED_BUFFER | CONFIG_CHANGE] {
        if expected & USED_BUFFER != 0 {
            driver.send(&[BUFFER]);
        }
        if expected & CONFIG_CHANGE != 0 {
            driver.config_changed();
        }
        assert!(interrupt_status(&mut driver));
        for offset in [1, 3] {
            assert_eq!(read_u8(&mut driver, cfg_type::ISR, offset), 0);
        }
        assert_eq!(isr_status(&mut driver), expected);
        assert!(!interrupt_status(&mut driver));
        assert_eq!(isr_status(&mut driver), 0);
    }
    assert!(vectors(&mut driver).is_empty());
    // A reset ends it too.
    driver.config_changed();
    driver.reset();
    assert!(!interrupt_status(&mut driver));
    assert_eq!(isr_status(&mut driver), 0);
}

/// Sets up the PCI configuration access capability, and returns where its data is.
fn describe_access(pci: &PciRegisters, bar: u8, offset: u32, length: u32) -> usize {
    let capability = pci.structure(cfg_type::PCI).unwrap().capability;
    pci.write_config_space(capability + 4, &[bar]);
    pci.write_config_space(capability + 8, &offset.to_le_bytes());
    pci.write_config_space(capability + 12, &length.to_le_bytes());
    capability + 16
}

#[test]
fn everything_can_be_done_without_a_bar() {
    let (_, mut driver) = up();
    driver.config_changed();
    let pci = driver.pci();
    let [common, notify, isr, device] =
        [cfg_type::COMMON, cfg_type::NOTIFY, cfg_type::ISR, cfg_type::DEVICE]
            .map(|kind| pci.structure(kind).unwrap().offset);
    pci.command(config::COMMAND_MASTER);
    let data = describe_access(pci, 0, device, 4);
    assert_eq!(pci.config_u32(data), u32::from_le_bytes(*b"stub"));
    describe_access(pci, 0, device + 2, 2);
    assert_eq!(pci.config_u32(data), u32::from_le_bytes(*b"ub\0\0"));
    // A read of part of the data makes the whole access.
    assert_eq!([0, 1].map(|byte| pci.config_u8(data + byte)), *b"ub");
    describe_access(pci, 0, isr, 1);
    assert_eq!(pci.config_u32(data), CONFIG_CHANGE);
    assert_eq!(pci.config_u32(data), 0);

    let (select, _) = field_of(Register::DeviceFeatureSelect);
    describe_access(pci, 0, common + select as u32, 4);
    pci.write_config_space(data, &[0x78, 0x56, 0x34, 0x12]);
    assert_eq!(pci.config_u32(data), 0x1234_5678);
    pci.write_config_space(data + 1, &[0xaa]);
    assert_eq!(pci.config_u32(data), 0x1234_aa78);

    describe_access(pci, 0, notify, 2);
    pci.write_config_space(data, &[0; 2]);
    assert_eq!(driver.doorbells.take(), 1);
    let pci = driver.pci();
    let (status, _) = field_of(Register::DeviceStatus);
    describe_access(pci, 0, common + status as u32, 1);
    assert_eq!(pci.config_u8(data), 0xf);
    pci.write_config_space(data, &[0]);
    assert_eq!(pci.config_u8(data), 0);
}

#[test]
fn invalid_configuration_accesses_have_no_effect() {
    let (_, mut driver) = up();
    let up = driver.read(Register::DeviceStatus);
    let common = driver.pci().structure(cfg_type::COMMON).unwrap().offset;
    let (status, _) = field_of(Register::DeviceStatus);
    let status_at = common + status as u32;
    for (bar, offset, length) in [
        (0, status_at, 0),
        (0, status_at, 2),
        (0, status_at, 3),
        (0, status_at, 4),
        (0, status_at, 5),
        (0, status_at, 0x101),
        (0, status_at, u32::MAX),
        (0, status_at - 1, 1),
        (0, 0x1_0000 + status_at, 1),
        (0, u32::MAX, 1),
        (1, status_at, 1),
        (2, 0, 4),
        (5, status_at, 1),
        (6, status_at, 1),
        (u8::MAX, status_at, 1),
    ] {
        let pci = driver.pci();
        let data = describe_access(pci, bar, offset, length);
        pci.write_config_space(data, &[0; 4]);
        assert_eq!(pci.config_u32(data), 0, "{length} bytes at {offset:#x} of BAR {bar}");
        assert_eq!(driver.read(Register::DeviceStatus), up);
    }
}

#[test]
fn a_function_does_not_access_memory_until_it_is_a_bus_master() {
    let (device, mut driver) = up();
    driver.pci().command(config::COMMAND_MEMORY);
    let head = driver.write_chain(&[BUFFER]);
    driver.publish(head);
    driver.kick();
    driver.config_changed();
    assert_eq!(driver.take_used(), []);
    assert!(device.seen().chains.is_empty());
    assert!(vectors(&mut driver).is_empty(), "a message is an access to memory too");
    driver.pci().command(config::COMMAND_MEMORY | config::COMMAND_MASTER);
    assert_eq!(driver.doorbells.take(), 1, "the device goes on by itself");
    assert_eq!(vectors(&mut driver), [0]);
    driver.process_queues();
    assert_eq!(driver.take_used().len(), 1);
    assert_eq!(vectors(&mut driver), [1]);
    driver.pci().command(config::COMMAND_MEMORY | config::COMMAND_MASTER);
    assert_eq!(driver.doorbells.take(), 0, "it was a bus master all the time");
}

#[test]
fn resets_of_the_function_reset_the_device() {
    let function_level = |pci: &PciRegisters| {
        let control = pci.capability(config::EXPRESS) + config::EXPRESS_DEVICE_CONTROL;
        let bits = pci.config_u16(control) | config::FUNCTION_LEVEL_RESET;
        pci.write_config_space(control, &bits.to_le_bytes());
    };
    let power_management = |pci: &PciRegisters| {
        let control = pci.capability(config::POWER_MANAGEMENT) + config::POWER_MANAGEMENT_CONTROL;
        pci.write_config_space(control, &config::D3HOT.to_le_bytes());
        pci.write_config_space(control, &[0; 2]);
    };
    let hot = |pci: &PciRegisters| {
        for bits in [config::SECONDARY_BUS_RESET, 0] {
            let control = config::BRIDGE_CONTROL;
            pci.root.write_config(PciRegisters::PORT, control, &bits.to_le_bytes());
        }
    };
    let resets: [fn(&PciRegisters); 3] = [function_level, power_management, hot];
    for reset in resets {
        let (device, mut driver) = up();
        driver.config_changed();
        driver.send(&[BUFFER]);
        assert_eq!(vectors(&mut driver), [0, 1]);
        let head = driver.write_chain(&[BUFFER]);
        driver.publish(head);
        let resets = device.seen().resets;
        reset(driver.pci());
        assert_eq!(device.seen().resets, resets + 1);
        let read = driver.pci().root.read_memory(PciRegisters::bar(0), &mut [0; 4]);
        assert!(matches!(read, Access::Refused(_)));
        assert!(!driver.process_queues());
        assert_eq!(driver.take_used(), []);
        driver.config_changed();

        driver.start();
        assert_eq!(driver.status(), DeviceStatus::empty());
        assert_eq!(driver.read(Register::QueueEnable), 0);
        assert_eq!(driver.read_field(field::CONFIG_MSIX_VECTOR), NO_VECTOR);
        assert_eq!(isr_status(&mut driver), 0);
        driver.process_queues();
        assert!(vectors(&mut driver).is_empty());
        bring_up(&mut driver);
        driver.send(&[BUFFER]);
        assert_eq!(vectors(&mut driver), [1]);
        assert_eq!(device.seen().chains, [0, 0]);
    }
}

/// A source of randomness whose third read writes to configuration space.
struct Source {
    reads: usize,
    write: Arc<OnceLock<(Arc<RootComplex>, ConfigWrite)>>,
}

/// Function, register and value of that write.
type ConfigWrite = (FunctionAddress, usize, u16);

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if !data.is_empty() {
            self.reads += 1;
        }
        if self.reads == 3
            && let Some((root, (function, offset, value))) = self.write.get()
        {
            root.write_config(*function, *offset, &value.to_le_bytes());
        }
        data.fill(0x5a);
        Ok(data.len())
    }
}

#[test]
fn no_buffer_is_filled_after_bus_mastering_ends() {
    let (function, port) = (PciRegisters::FUNCTION, PciRegisters::PORT);
    let cases: [fn(&PciRegisters) -> ConfigWrite; 4] = [
        |_| (PciRegisters::FUNCTION, config::COMMAND, config::COMMAND_MEMORY),
        |pci| {
            let control =
                pci.capability(config::POWER_MANAGEMENT) + config::POWER_MANAGEMENT_CONTROL;
            (PciRegisters::FUNCTION, control, config::D3HOT)
        },
        |_| (PciRegisters::PORT, config::COMMAND, config::COMMAND_MEMORY),
        |_| (PciRegisters::PORT, config::BRIDGE_CONTROL, config::SECONDARY_BUS_RESET),
    ];
    for (case, write) in (0..).zip(cases) {
        let what = Arc::new(OnceLock::new());
        let source = Source { reads: 0, write: Arc::clone(&what) };
        let device = Arc::new(Rng::new(Box::new(source)));
        let mut driver = TestDriver::new(TransportKind::Pci, device);
        driver.bring_up(0, Rings::default());
        let root = Arc::clone(&driver.pci().root);
        let write = write(driver.pci());
        what.set((root, write)).unwrap_or_else(|_| panic!("it is set once"));
        let buffers = (0..16).map(|i| BUFFERS + 0x100 * i);
        for address in buffers.clone() {
            let head = driver.write_chain(&[Buffer::writable(address, 8)]);
            driver.publish(head);
        }
        driver.notify(0);
        assert!(!driver.process_queues());
        let filled = |driver: &TestDriver| {
            buffers.clone().filter(|address| driver.load::<u64>(*address) != 0).count()
        };
        assert_eq!(filled(&driver), 2, "case {case}");
        assert_eq!(driver.take_used().len(), 2, "case {case}");

        let reset = matches!(write, (_, config::BRIDGE_CONTROL, _));
        let asleep = write.2 == config::D3HOT;
        if reset || asleep {
            // There is nothing to go on with after a reset.
            continue;
        }
        for function in [port, function] {
            let on = (config::COMMAND_MEMORY | config::COMMAND_MASTER).to_le_bytes();
            driver.pci().root.write_config(function, config::COMMAND, &on);
        }
        driver.process_queues();
        // The third one was under way when the device lost access to its buffer.
        let used: Vec<u32> = driver.take_used().iter().map(|used| used.len).collect();
        assert_eq!(used, [[0].as_slice(), &[8; 13]].concat(), "case {case}");
        assert_eq!(filled(&driver), 15, "case {case}");
    }
}
