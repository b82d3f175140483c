//! The host's NUMA nodes, and binding memory to one of them.

use std::{fs, io};

/// Has every page of the mapping `address..address + size` allocated on `node` only (MPOL_BIND, mbind(2)).
pub fn bind(address: u64, size: u64, node: u16) -> io::Result<()> {
    const WORD: usize = u64::BITS as usize;
    let mut nodes = vec![0_u64; usize::from(node) / WORD + 1];
    nodes[usize::from(node) / WORD] = 1 << (usize::from(node) % WORD);
    // Linux subtracts one from the number of bits (get_nodes() of mm/mempolicy.c, 6.12).
    let bits = nodes.len() * WORD + 1;
    let (mode, mask, flags) = (libc::MPOL_BIND, nodes.as_ptr(), 0);
    // SAFETY: the mask is as long as `bits` says; the policy determines where pages are allocated, and
    // does not change their contents.
    let result = unsafe { libc::syscall(libc::SYS_mbind, address, size, mode, mask, bits, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The nodes that have memory, as the host lists them: `0-1,3`.
pub fn nodes_with_memory() -> String {
    fs::read_to_string("/sys/devices/system/node/has_memory")
        .map_or("none (its kernel has no NUMA support)".into(), |nodes| nodes.trim().into())
}
