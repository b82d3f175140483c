//! The entropy device (virtio 1.3, section 5.4).

use std::io::Read;
use std::sync::Mutex;

use super::{Chain, DeviceType, VirtioDevice};
use crate::lock;

/// Fills the driver's buffers from a source of randomness.
pub struct Rng {
    source: Mutex<Box<dyn Read + Send>>,
}

impl Rng {
    /// At most this many bytes answer one chain, so that a guest cannot keep the machine busy with one
    /// huge buffer. A driver that needs more sends another chain.
    const MAX_BYTES_A_CHAIN: u64 = 64 << 10;

    /// An entropy device that reads from `source`.
    pub fn new(source: Box<dyn Read + Send>) -> Self {
        Self { source: Mutex::new(source) }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[256]
    }

    fn process_chain(&self, _queue: u16, chain: &Chain<'_>) -> u32 {
        let Some(mut writer) = chain.writer() else {
            return 0;
        };
        let wanted = writer.available().min(Self::MAX_BYTES_A_CHAIN);
        // The bytes that were copied before the source failed are valid.
        let _ = std::io::copy(&mut lock(&self.source).by_ref().take(wanted), &mut writer);
        writer.written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Arc;

    use crate::virtio::hostile_queue::{Fixture, hostile_queue_tests};
    use crate::virtio::iommu::test_machine::page_by_page;
    use crate::virtio::test_driver::memory::BUFFERS;
    use crate::virtio::test_driver::{Buffer, Rings, TestDriver, TransportKind, on_each_transport};

    fn driver(on: TransportKind, source: impl Read + Send + 'static) -> TestDriver {
        let mut driver = TestDriver::new(on, Arc::new(Rng::new(Box::new(source))));
        driver.bring_up(0, Rings::default());
        driver
    }

    fn fixture(on: TransportKind) -> Fixture {
        let request = vec![Buffer::writable(BUFFERS, 40)];
        Fixture { driver: driver(on, io::repeat(0x5a)), request, answer: 40 }
    }

    hostile_queue_tests!(fixture);

    mod behind_an_iommu {
        use super::*;

        fn fixture(on: TransportKind) -> Fixture {
            let device = Arc::new(Rng::new(Box::new(io::repeat(0x5a))));
            let mut driver = TestDriver::behind(page_by_page(), on, device, vec![]);
            driver.bring_up(0, Rings::default());
            Fixture { driver, ..super::fixture(on) }
        }

        hostile_queue_tests!(fixture);
    }

    on_each_transport! {
        buffers_are_filled_from_the_source_and_no_further
        a_source_that_ends_or_fails_leaves_what_it_gave
        one_huge_buffer_is_filled_in_part
        readable_buffers_are_left_alone
    }

    fn buffers_are_filled_from_the_source_and_no_further(on: TransportKind) {
        let mut driver = driver(on, &b"0123456789"[..]);
        driver.store(BUFFERS, [b'.'; 16]);
        let chain = [Buffer::writable(BUFFERS, 3), Buffer::writable(BUFFERS + 8, 4)];
        assert_eq!(driver.send(&chain), 7);
        assert_eq!(&driver.load::<[u8; 16]>(BUFFERS), b"012.....3456....");
    }

    fn a_source_that_ends_or_fails_leaves_what_it_gave(on: TransportKind) {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::Other.into())
            }
        }
        let mut driver = driver(on, (&b"01234"[..]).chain(Failing));
        assert_eq!(driver.send(&[Buffer::writable(BUFFERS, 8)]), 5);
        assert_eq!(&driver.load::<[u8; 8]>(BUFFERS), b"01234\0\0\0");
        assert_eq!(driver.send(&[Buffer::writable(BUFFERS, 8)]), 0);
    }

    fn one_huge_buffer_is_filled_in_part(on: TransportKind) {
        let mut driver = driver(on, io::repeat(0x5a));
        assert_eq!(driver.send(&[Buffer::writable(BUFFERS, 1 << 20)]), 64 << 10);
        assert_eq!(driver.load::<u8>(BUFFERS + (64 << 10) - 1), 0x5a);
        assert_eq!(driver.load::<u8>(BUFFERS + (64 << 10)), 0);
    }

    fn readable_buffers_are_left_alone(on: TransportKind) {
        let mut driver = driver(on, io::repeat(0x5a));
        let chain = [Buffer::readable(BUFFERS, 8), Buffer::writable(BUFFERS + 8, 8)];
        assert_eq!(driver.send(&chain), 8);
        assert_eq!(driver.load::<u64>(BUFFERS), 0);
    }
}
