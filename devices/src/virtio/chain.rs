//! A chain of descriptors, as the device that answers it sees it: bytes to read, and room to write.

use std::io::{self, ErrorKind, Read, Write};

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::dma::{ChainId, DmaLease, DmaView};

/// A piece of the driver's memory that a descriptor describes.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    address: GuestAddress,
    length: usize,
}

/// A chain that the driver made available.
///
/// Descriptors are read once. The memory that they describe is looked up at each access, since it may
/// be unmapped at any moment: each access is made only if it is permitted then.
pub struct Chain<'a> {
    memory: &'a DmaView,
    id: ChainId,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl<'a> Chain<'a> {
    /// Reads the descriptors of a chain of queue `queue`, within `lease` of `memory`.
    ///
    /// A driver must not make a chain longer than the queue (virtio 1.3, section 2.7.5.3.1), and an
    /// indirect table has room for 65535 descriptors: one that is longer than `longest` holds nothing.
    pub(super) fn read(
        memory: &'a DmaView,
        lease: &DmaLease<'_>,
        queue: u16,
        descriptors: DescriptorChain<&DmaLease<'_>>,
        longest: u16,
    ) -> Self {
        let id = ChainId { queue, head: descriptors.head_index() };
        let mut chain = Self { memory, id, readable: Vec::new(), writable: Vec::new() };
        lease.work_on(id);
        for (count, descriptor) in (1..).zip(descriptors) {
            if count > u32::from(longest) {
                chain.readable.clear();
                chain.writable.clear();
                break;
            }
            let buffers =
                if descriptor.is_write_only() { &mut chain.writable } else { &mut chain.readable };
            let length = descriptor.len() as usize;
            buffers.push(Buffer { address: descriptor.addr(), length });
        }
        chain
    }

    /// The chain's ID.
    pub fn id(&self) -> ChainId {
        self.id
    }

    /// What the driver has written for the device. None unless all of it may be read now.
    pub fn reader(&self) -> Option<ChainReader<'_>> {
        let cursor = self.cursor(&self.readable, Permissions::Read)?;
        Some(ChainReader(cursor))
    }

    /// The room for the device's answer. None unless all of it may be written now.
    pub fn writer(&self) -> Option<ChainWriter<'_>> {
        let cursor = self.cursor(&self.writable, Permissions::Write)?;
        Some(ChainWriter { cursor, written: 0 })
    }

    /// The start of `buffers`, if all of them permit `access` now.
    fn cursor<'c>(&'c self, buffers: &'c [Buffer], access: Permissions) -> Option<Cursor<'c>> {
        let lease = self.memory.lease().ok()?;
        lease.work_on(self.id);
        let permitted =
            |Buffer { address, length }: &Buffer| lease.check_range(*address, *length, access);
        buffers.iter().all(permitted).then_some(Cursor { chain: self, buffers, offset: 0 })
    }
}

/// A place in the bytes of some buffers.
struct Cursor<'a> {
    chain: &'a Chain<'a>,
    buffers: &'a [Buffer],
    /// In the first of them.
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// The next bytes of one buffer, at most `longest`, behind which the cursor is then. None at the end.
    fn next(&mut self, longest: usize) -> Option<Buffer> {
        while let [Buffer { address, length }, rest @ ..] = self.buffers {
            let (start, left) = (self.offset, length - self.offset);
            let length = left.min(longest);
            if length == left {
                (self.buffers, self.offset) = (rest, 0);
            } else {
                self.offset += length;
            }
            if left > 0 {
                let address = GuestAddress(address.0.wrapping_add(start as u64));
                return Some(Buffer { address, length });
            }
        }
        None
    }

    /// Accesses the next bytes, at most `longest`, within one lease. Returns the number of bytes
    /// accessed, which ends early at memory that may not be accessed.
    fn access(
        &mut self,
        longest: usize,
        mut access: impl FnMut(&DmaLease<'_>, GuestAddress, usize, usize) -> bool,
    ) -> io::Result<usize> {
        let lease = self.chain.memory.lease().map_err(io::Error::other)?;
        lease.work_on(self.chain.id);
        let mut done = 0;
        while done < longest {
            let Some(Buffer { address, length }) = self.next(longest - done) else {
                break;
            };
            if !access(&lease, address, done, length) {
                // Nothing behind memory that may not be accessed is accessed either.
                self.buffers = &[];
                return match done {
                    0 => Err(io::Error::other("the driver's buffer may not be accessed")),
                    done => Ok(done),
                };
            }
            done += length;
        }
        Ok(done)
    }
}

/// Reads what the driver has written. A buffer that may not be accessed is an error.
pub struct ChainReader<'a>(Cursor<'a>);

impl Read for ChainReader<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.0.access(data.len(), |lease, address, done, length| {
            lease.read_slice(&mut data[done..done + length], address).is_ok()
        })
    }
}

/// Writes the device's answer. A buffer that may not be accessed is an error.
pub struct ChainWriter<'a> {
    cursor: Cursor<'a>,
    written: u32,
}

impl ChainWriter<'_> {
    /// How many bytes have been written.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// How many bytes may follow.
    pub fn available(&self) -> u64 {
        let all: u64 = self.cursor.buffers.iter().map(|buffer| buffer.length as u64).sum();
        all - self.cursor.offset as u64
    }
}

impl Write for ChainWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.cursor.access(data.len(), |lease, address, done, length| {
            lease.write_slice(&data[done..done + length], address).is_ok()
        })?;
        if written == 0 && !data.is_empty() {
            return Err(ErrorKind::WriteZero.into());
        }
        self.written += written as u32;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
