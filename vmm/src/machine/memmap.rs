//! What memory costs a Linux guest before it gives any.

/// Bytes of plugged memory for each byte of page descriptors: `struct page` of 64 bytes, a page of
/// 4 KiB.
const PLUGGED_BYTES_PER_MEMMAP_BYTE: u64 = 64;

/// In words, that a guest with `ram` bytes of RAM may not have what it takes to plug `growth` more.
///
/// How much of its RAM is free only the guest knows. So this comes when it takes more than half, and
/// names the numbers.
pub fn warning(growth: u64, ram: u64) -> Option<String> {
    const MIB: u64 = 1 << 20;
    let memmap = growth / PLUGGED_BYTES_PER_MEMMAP_BYTE;
    (memmap > ram / 2).then(|| {
        format!(
            "to plug {} MiB takes Linux {} MiB for page descriptors, out of the guest's {} MiB of \
             RAM; if it has not so much free, it stops half-way or runs out of memory",
            growth / MIB,
            memmap / MIB,
            ram / MIB,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_warned_of_when_its_page_descriptors_take_more_than_half_of_ram() {
        const GIB: u64 = 1 << 30;
        assert_eq!(warning(0, GIB), None);
        assert_eq!(warning(32 * GIB, GIB), None);
        let words = warning(40 * GIB, GIB).unwrap();
        for number in ["40960 MiB", "640 MiB", "1024 MiB"] {
            assert!(words.contains(number), "{words}");
        }
    }
}
