//! A shared directory as a virtio-fs device's server.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use devices::virtio::fs::FileServer;
use shared_dir::{Access, Message, SharedDirectory};
use vm_memory::VolatileSlice;

/// Answers messages on a directory.
pub struct FuseServer(pub SharedDirectory);

impl FileServer for FuseServer {
    fn answer(&self, request: &mut [u8], reply: &mut [u8]) -> usize {
        let (length, room) = (request.len(), reply.len());
        let (request, reply) = (RefCell::new(request), RefCell::new(reply));
        self.0.handle(&Lent { length, room, request, reply })
    }

    fn reset(&self) {
        self.0.reset();
    }
}

/// A message whose bytes the device has copied out of the guest's memory.
struct Lent<'a> {
    length: usize,
    room: usize,
    request: RefCell<&'a mut [u8]>,
    reply: RefCell<&'a mut [u8]>,
}

impl Message for Lent<'_> {
    fn request_length(&self) -> usize {
        self.length
    }

    fn reply_room(&self) -> usize {
        self.room
    }

    fn with_request(&self, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize> {
        lend(&self.request, range, access)
    }

    fn with_reply(&self, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize> {
        lend(&self.reply, range, access)
    }
}

fn lend(
    bytes: &RefCell<&mut [u8]>,
    range: Range<usize>,
    access: &mut Access<'_>,
) -> io::Result<usize> {
    let mut bytes = bytes.borrow_mut();
    let bytes = bytes.get_mut(range).ok_or(io::ErrorKind::UnexpectedEof)?;
    access(&[VolatileSlice::from(bytes)])
}
