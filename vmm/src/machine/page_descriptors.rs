//! The page descriptors that a Linux guest allocates before it can use plugged memory.

/// Bytes of plugged memory for each byte of page descriptors: `struct page` of 64 bytes, a page of
/// 4 KiB.
const PLUGGED_BYTES_PER_DESCRIPTOR_BYTE: u64 = 64;

/// A warning that a guest with `ram` bytes of RAM may have too little of it free to plug `growth` bytes more.
///
/// Only the guest knows how much of its RAM is free, so this warns if the descriptors need more than half.
pub fn warning(growth: u64, ram: u64) -> Option<String> {
    const MIB: u64 = 1 << 20;
    let descriptors = growth / PLUGGED_BYTES_PER_DESCRIPTOR_BYTE;
    (descriptors > ram / 2).then(|| {
        format!(
            "to plug {} MiB, Linux needs {} MiB for page descriptors, out of the guest's {} MiB of \
             RAM; with less than that free, it stops half-way or runs out of memory",
            growth / MIB,
            descriptors / MIB,
            ram / MIB,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_whose_page_descriptors_need_more_than_half_of_ram_gets_a_warning() {
        const GIB: u64 = 1 << 30;
        assert_eq!(warning(0, GIB), None);
        assert_eq!(warning(32 * GIB, GIB), None);
        let message = warning(40 * GIB, GIB).unwrap();
        for number in ["40960 MiB", "640 MiB", "1024 MiB"] {
            assert!(message.contains(number), "{message}");
        }
    }
}
