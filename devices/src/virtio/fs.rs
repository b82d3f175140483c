//! The file system device (virtio 1.3, section 5.11): carries FUSE messages to the server that has the
//! files.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::{Chain, DeviceType, VirtioDevice, read_config_bytes};
use crate::lock;

/// Answers FUSE messages (linux/fuse.h).
pub trait FileServer: Send + Sync {
    /// Answers `request` in `reply`, and returns how many bytes that took; 0 if there is no reply to
    /// such a request. The caller does not use the contents of `request` afterwards.
    ///
    /// It may take as long as the host's file system does. No lock of a device is held meanwhile.
    fn answer(&self, request: &mut [u8], reply: &mut [u8]) -> usize;

    /// Drops all state of the guest, which has reset the device.
    fn reset(&self);
}

/// A tag that does not fit into the configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid tag {0:?} of a file system: expected 1 to 36 bytes")]
pub struct InvalidTag(pub String);

/// The configuration space, `virtio_fs_config`.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    tag: [u8; 36],
    request_queue_count: U32,
}

/// A file system device: a queue for FORGET and INTERRUPT, and one for all other requests.
pub struct FileSystem {
    config: Config,
    server: Arc<dyn FileServer>,
    /// Buffers of messages, kept from one to the next.
    buffers: Mutex<Vec<Buffers>>,
    /// The server's reset is still to be made: it may take the host long, so it is not made on a vCPU's
    /// thread.
    was_reset: AtomicBool,
}

#[derive(Default)]
struct Buffers {
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl FileSystem {
    /// The most bytes of a request, and of a reply: a MiB of file data, and the headers that come with
    /// it. Bytes beyond that are ignored.
    const LONGEST_MESSAGE: usize = (1 << 20) + (64 << 10);
    /// Linux makes requests as large as fit into a queue, with a descriptor for each page.
    const QUEUE_MAX_SIZES: [u16; 2] = [128, 1024];

    /// A file system that guests mount by `tag`.
    pub fn new(tag: &str, server: Arc<dyn FileServer>) -> Result<Self, InvalidTag> {
        let mut config = Config { tag: [0; 36], request_queue_count: U32::new(1) };
        let room = config.tag.get_mut(..tag.len()).filter(|room| !room.is_empty());
        room.ok_or_else(|| InvalidTag(tag.to_owned()))?.copy_from_slice(tag.as_bytes());
        let (buffers, was_reset) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { config, server, buffers, was_reset })
    }

    /// Answers the message in `chain`. A message of which a part may not be accessed is ignored.
    fn answer(&self, chain: &Chain<'_>, buffers: &mut Buffers) -> Option<u32> {
        let Buffers { request, reply } = buffers;
        request.clear();
        chain.reader()?.take(Self::LONGEST_MESSAGE as u64).read_to_end(request).ok()?;
        // FORGET has no reply, and its chain no writable part.
        let mut writer = chain.writer()?;
        let room = usize::try_from(writer.available()).unwrap_or(usize::MAX);
        reply.resize(room.min(Self::LONGEST_MESSAGE), 0);
        let length = self.server.answer(request, reply);
        writer.write_all(&reply[..length]).ok()?;
        Some(writer.written())
    }
}

impl VirtioDevice for FileSystem {
    fn device_type(&self) -> DeviceType {
        DeviceType::FileSystem
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &Self::QUEUE_MAX_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.config.as_bytes(), offset, data);
    }

    fn process_chain(&self, _queue: u16, chain: &Chain<'_>) -> u32 {
        if self.was_reset.swap(false, Ordering::AcqRel) {
            self.server.reset();
        }
        let mut buffers = lock(&self.buffers).pop().unwrap_or_default();
        let written = self.answer(chain, &mut buffers);
        lock(&self.buffers).push(buffers);
        written.unwrap_or(0)
    }

    fn reset(&self) {
        self.was_reset.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::hostile_queue::{Fixture, hostile_queue_tests};
    use crate::virtio::iommu::test_machine::page_by_page;
    use crate::virtio::test_driver::memory::BUFFERS;
    use crate::virtio::test_driver::{Buffer, Rings, TestDriver, TransportKind, on_each_transport};

    /// Answers with the request's bytes in reverse order, padded as far as there is room, to 40 bytes
    /// at most.
    struct Backwards;

    impl FileServer for Backwards {
        fn answer(&self, request: &mut [u8], reply: &mut [u8]) -> usize {
            let length = reply.len().min(40);
            let bytes = request.iter().rev().copied().chain(std::iter::repeat(0x5a));
            reply[..length].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            length
        }

        fn reset(&self) {}
    }

    fn device() -> Arc<FileSystem> {
        Arc::new(FileSystem::new("host", Arc::new(Backwards)).unwrap())
    }

    fn fixture(on: TransportKind) -> Fixture {
        let mut driver = TestDriver::new(on, device());
        driver.bring_up(0, Rings::default());
        Fixture { driver, request: vec![Buffer::writable(BUFFERS, 40)], answer: 40 }
    }

    hostile_queue_tests!(fixture);

    mod behind_an_iommu {
        use super::*;

        fn fixture(on: TransportKind) -> Fixture {
            let mut driver = TestDriver::behind(page_by_page(), on, device(), vec![]);
            driver.bring_up(0, Rings::default());
            Fixture { driver, ..super::fixture(on) }
        }

        hostile_queue_tests!(fixture);
    }

    on_each_transport! {
        a_message_is_answered
        a_message_without_room_for_a_reply_is_used
        a_message_that_is_too_long_is_cut
        the_configuration_has_the_tag
    }

    fn a_message_is_answered(on: TransportKind) {
        let Fixture { mut driver, .. } = fixture(on);
        driver.store(BUFFERS, *b"abcd");
        let chain = [Buffer::readable(BUFFERS, 4), Buffer::writable(BUFFERS + 8, 6)];
        assert_eq!(driver.send(&chain), 6);
        assert_eq!(&driver.load::<[u8; 6]>(BUFFERS + 8), b"dcbaZZ");
    }

    fn a_message_without_room_for_a_reply_is_used(on: TransportKind) {
        let Fixture { mut driver, .. } = fixture(on);
        assert_eq!(driver.send(&[Buffer::readable(BUFFERS, 4)]), 0);
    }

    fn a_message_that_is_too_long_is_cut(on: TransportKind) {
        let Fixture { mut driver, .. } = fixture(on);
        let chain = [Buffer::readable(BUFFERS, 8 << 20), Buffer::writable(BUFFERS, 8 << 20)];
        assert_eq!(driver.send(&chain), 40);
    }

    fn the_configuration_has_the_tag(on: TransportKind) {
        let Fixture { mut driver, .. } = fixture(on);
        let mut config = [0xff; 44];
        driver.read_config(0, &mut config);
        assert_eq!(config[..4], *b"host");
        assert_eq!(config[4..36], [0; 32]);
        assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_tag_has_1_to_36_bytes() {
        for (tag, is_valid) in [("", false), (&"x".repeat(36), true), (&"x".repeat(37), false)] {
            assert_eq!(FileSystem::new(tag, Arc::new(Backwards)).is_ok(), is_valid, "{tag:?}");
        }
    }
}
