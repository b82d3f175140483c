//! Messages as they lie in the guest's memory.

use std::cell::RefCell;
use std::io;
use std::ops::{DerefMut, Range};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// What is done with a piece of a message. Gives how many bytes it moved.
pub type Access<'a> = dyn FnMut(&[VolatileSlice<'_>]) -> io::Result<usize> + 'a;

/// A request, and the room for its reply, in the guest's memory.
///
/// A virtio-fs device implements it for a chain of descriptors. Nothing is remembered of an access, so
/// memory may come and go between two of them. An access to file data takes as long as the host's file
/// system does.
pub trait Message {
    /// Bytes of the request.
    fn request_length(&self) -> usize;

    /// Bytes of the reply at most.
    fn reply_room(&self) -> usize;

    /// Lends these bytes of the request, in order, for as long as `access` takes. An error if they are
    /// not all there.
    fn with_request(&self, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize>;

    /// Lends these bytes of the reply, in order, for as long as `access` takes. An error if they are
    /// not all there.
    fn with_reply(&self, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize>;
}

/// Copies `length` bytes of the request from `offset` on.
pub(crate) fn read(message: &dyn Message, offset: usize, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    message.with_request(offset..offset + length, &mut |slices| {
        let mut rest = &mut bytes[..];
        for slice in slices {
            let copied = slice.copy_to(rest);
            rest = &mut rest[copied..];
        }
        Ok(length)
    })?;
    Ok(bytes)
}

/// Copies `bytes` to the reply at `offset`.
pub(crate) fn write(message: &dyn Message, offset: usize, bytes: &[u8]) -> io::Result<()> {
    message.with_reply(offset..offset + bytes.len(), &mut |slices| {
        let mut rest = bytes;
        for slice in slices {
            let copied = slice.len().min(rest.len());
            slice.copy_from(&rest[..copied]);
            rest = &rest[copied..];
        }
        Ok(bytes.len())
    })?;
    Ok(())
}

/// The kernel's limit on one call (UIO_MAXIOV).
const MOST_SLICES: usize = 1024;

/// Fills `slices` with the file's bytes from `offset` on, as far as there are any.
pub(crate) fn read_file(
    file: BorrowedFd<'_>,
    offset: u64,
    slices: &[VolatileSlice<'_>],
) -> io::Result<usize> {
    move_all(offset, slices, |buffers, offset| {
        // SAFETY: the buffers are memory that `slices` keeps mapped and that the guest may write at any
        // time, as a VolatileSlice is. There are at most MOST_SLICES of them.
        unsafe { libc::preadv(file.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32, offset) }
    })
}

/// Writes `slices` to the file from `offset` on.
pub(crate) fn write_file(
    file: BorrowedFd<'_>,
    offset: u64,
    slices: &[VolatileSlice<'_>],
) -> io::Result<usize> {
    move_all(offset, slices, |buffers, offset| {
        // SAFETY: as in `read_file`, and the buffers are only read.
        unsafe { libc::pwritev(file.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32, offset) }
    })
}

/// Calls preadv or pwritev until all of `slices` are moved, or no more can be. An error counts only if
/// nothing was moved before it.
fn move_all(
    offset: u64,
    slices: &[VolatileSlice<'_>],
    call: impl Fn(&[libc::iovec], i64) -> isize,
) -> io::Result<usize> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut buffers: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let mut rest = &mut buffers[..];
    let mut done = 0;
    while !rest.is_empty() {
        let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
        let at = at.ok_or(Errno::INVAL)?;
        match call(&rest[..rest.len().min(MOST_SLICES)], at) {
            0 => break,
            moved @ 1.. => {
                done += moved as usize;
                rest = advance(rest, moved as usize);
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error if done == 0 => return Err(error),
                _ => break,
            },
        }
    }
    Ok(done)
}

/// What of `buffers` comes after `count` bytes.
fn advance(mut buffers: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
    while let [first, ..] = buffers {
        if count < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(count);
            first.iov_len -= count;
            break;
        }
        count -= first.iov_len;
        buffers = &mut buffers[1..];
    }
    buffers
}

/// A message in memory of this process, in pieces of 4096 bytes as a guest's pages are: one that a device
/// has copied out of its guest's memory, or a test's.
pub struct Buffers<B = Vec<u8>> {
    request: RefCell<B>,
    reply: RefCell<B>,
}

impl Buffers {
    /// A request, and the room for its reply in bytes.
    pub fn new(request: Vec<u8>, reply_room: usize) -> Self {
        Self::over(request, vec![0; reply_room])
    }

    /// The reply, of which as many bytes are valid as [`SharedDirectory::handle`] returned.
    ///
    /// [`SharedDirectory::handle`]: crate::SharedDirectory::handle
    pub fn into_reply(self) -> Vec<u8> {
        self.reply.into_inner()
    }
}

impl<B: DerefMut<Target = [u8]>> Buffers<B> {
    /// A request, and the room for its reply.
    pub fn over(request: B, reply: B) -> Self {
        Self { request: RefCell::new(request), reply: RefCell::new(reply) }
    }

    fn lend(bytes: &RefCell<B>, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize> {
        let mut bytes = bytes.borrow_mut();
        let bytes = bytes.get_mut(range).ok_or(io::ErrorKind::InvalidInput)?;
        let slices: Vec<_> = bytes.chunks_mut(4096).map(VolatileSlice::from).collect();
        access(&slices)
    }
}

impl<B: DerefMut<Target = [u8]>> Message for Buffers<B> {
    fn request_length(&self) -> usize {
        self.request.borrow().len()
    }

    fn reply_room(&self) -> usize {
        self.reply.borrow().len()
    }

    fn with_request(&self, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize> {
        Self::lend(&self.request, range, access)
    }

    fn with_reply(&self, range: Range<usize>, access: &mut Access<'_>) -> io::Result<usize> {
        Self::lend(&self.reply, range, access)
    }
}
