//! Finds the kernel's own symbol table (kallsyms) in the memory of a Linux guest.
//!
//! scripts/kallsyms.c of Linux puts these arrays into `.rodata`, one after the other, all numbers
//! in little endian:
//!
//! | array          | contents                                                                   |
//! |----------------|----------------------------------------------------------------------------|
//! | offsets        | `s32` for each symbol: its address, in one of three [encodings](Encoding)  |
//! | relative_base  | `u64`: what most offsets are relative to (until 6.19)                      |
//! | num_syms       | `u32`                                                                      |
//! | names          | for each symbol its length and that many bytes, each the number of a token   |
//! | markers        | `u32` for every 256th symbol: where its name is                            |
//! | token_table    | 256 tokens, each ended by a NUL                                            |
//! | token_index    | `u16` for each token: where it is                                          |
//!
//! Offsets and relative_base come last since Linux 6.4. Numbers of symbols in alphabetical order
//! (seqs_of_names, since 6.2) are somewhere between them. Each array is aligned to 8 bytes, since
//! 7.0 to 4. A name starts with its type, as nm(1) has it. A length of more than 127 takes two bytes
//! since 6.1; names were too short for that before.
//!
//! x86-64 always has CONFIG_KALLSYMS_BASE_RELATIVE, so that there are offsets and no addresses.
//!
//! No pointer leads to these arrays, so they are searched for. Hardly anything else looks like a token table
//! followed by its index, or like a list of names followed by its markers. A table is accepted only if its
//! address of `entry_SYSCALL_64` is the known one.

use super::KERNEL_HALF;
use super::table::{MAX_SYMBOLS, Symbols};

/// The function whose address is known.
pub const ENTRY: &str = "entry_SYSCALL_64";

const TOKENS: usize = 256;
/// Symbols from one marker to the next.
const MARKER_INTERVAL: usize = 256;
/// A name, including its type, has fewer bytes (KSYM_NAME_LEN).
const MAX_NAME: usize = 512;
/// Arrays are aligned to this, or to twice as much.
const ALIGNMENT: usize = 4;
const MAX_PADDING: usize = 7;

/// Returns the symbols of the kernel whose image, or a part of it, is in `image`. The first byte of `image`
/// has the virtual address `start`, aligned to 4096, and `entry` is the address of [`ENTRY`].
///
/// The guest controls the bytes. A malicious one can make this take up to a second and return no symbols or
/// wrong ones, nothing worse.
pub fn find(image: &[u8], start: u64, entry: u64) -> Option<Symbols> {
    // The number of candidate token tables that are tried; a kernel has one.
    const TOKEN_TABLES: usize = 8;
    let image = Image { bytes: image, start };
    let mut budget = SearchBudget::default();
    TokenTable::all(image)
        .take(TOKEN_TABLES)
        .find_map(|tokens| find_names(image, &tokens, entry, &mut budget))
}

/// Tries every candidate list of names before `tokens`.
fn find_names(
    image: Image<'_>,
    tokens: &TokenTable<'_>,
    entry: u64,
    budget: &mut SearchBudget,
) -> Option<Symbols> {
    let before = Image { bytes: &image.bytes[..tokens.start], ..image };
    for at in (ALIGNMENT..tokens.start).step_by(ALIGNMENT).rev() {
        if let Some(names) = Names::at(before, at, budget) {
            budget.spend(names.count)?;
            if let Some(symbols) = decode(image, tokens, &names, entry, budget) {
                return Some(symbols);
            }
        }
        budget.check()?;
    }
    None
}

fn decode(
    image: Image<'_>,
    tokens: &TokenTable<'_>,
    names: &Names<'_>,
    entry: u64,
    budget: &mut SearchBudget,
) -> Option<Symbols> {
    let mut text = String::with_capacity(2 * MAX_NAME);
    let mut entry_index = None;
    for (index, name) in names.iter().enumerate() {
        let (kind, name) = tokens.expand(name, &mut text, budget)?;
        if (kind, name) == ('T', ENTRY) {
            entry_index = Some(index);
            break;
        }
    }
    let entry_index = entry_index?;
    let addresses = Addresses::candidates(image, tokens, names)
        .into_iter()
        .flatten()
        .find(|addresses| addresses.get(entry_index) == Some(entry))?;
    let mut symbols = Symbols::default();
    for (index, name) in names.iter().enumerate() {
        let (kind, name) = tokens.expand(name, &mut text, budget)?;
        let address = addresses.get(index)?;
        if address >= KERNEL_HALF {
            symbols.push(address, kind, name, None).ok()?;
        }
    }
    symbols.sort();
    Some(symbols)
}

/// The work that a search may still do, so that a malicious guest cannot keep the host busy: the number of
/// names examined, and of their bytes, compressed and not. A search in Debian's kernels takes a twentieth.
struct SearchBudget(usize);

impl Default for SearchBudget {
    fn default() -> Self {
        Self(256 << 20)
    }
}

impl SearchBudget {
    /// None if nothing is left after `steps`.
    fn spend(&mut self, steps: usize) -> Option<()> {
        match self.0.checked_sub(steps) {
            Some(left) => self.0 = left,
            None => self.0 = 0,
        }
        self.check()
    }

    /// None if nothing is left.
    fn check(&self) -> Option<()> {
        (self.0 > 0).then_some(())
    }
}

/// Bytes of a guest, and the virtual address of the first.
#[derive(Clone, Copy)]
struct Image<'a> {
    bytes: &'a [u8],
    start: u64,
}

impl Image<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    fn address(&self, at: usize) -> u64 {
        self.start.wrapping_add(at as u64)
    }
}

/// The tokens that bytes of compressed names stand for.
struct TokenTable<'a> {
    tokens: Vec<&'a str>,
    /// Where the table starts.
    start: usize,
    /// Where its index ends.
    end: usize,
}

impl<'a> TokenTable<'a> {
    /// All candidates in `image`.
    fn all(image: Image<'a>) -> impl Iterator<Item = Self> {
        let places = (0..image.bytes.len()).step_by(ALIGNMENT);
        places.filter_map(move |at| Self::before_index(image.bytes, at))
    }

    /// The table whose index is at `at`.
    fn before_index(image: &'a [u8], at: usize) -> Option<Self> {
        let end = at + 2 * TOKENS;
        let (index, _) = image.get(at..end)?.as_chunks();
        let offset = |token: usize| usize::from(u16::from_le_bytes(index[token]));
        let is_step =
            |token: usize| (1..=MAX_NAME).contains(&offset(token).wrapping_sub(offset(token - 1)));
        if offset(0) != 0 || !(1..TOKENS).all(is_step) {
            return None;
        }
        // The last token is never empty, since scripts/kallsyms.c chooses it first.
        let count = |end: usize, most: usize, is_wanted: fn(&u8) -> bool| {
            image[..end].iter().rev().take(most).take_while(|byte| is_wanted(byte)).count()
        };
        let last_end = at - count(at, 1 + MAX_PADDING, |byte| *byte == 0);
        let last_start = last_end - count(last_end, MAX_NAME, |byte| *byte != 0);
        let start = last_start.checked_sub(offset(TOKENS - 1))?;
        let token = |token: usize| {
            let token_end = match token + 1 {
                TOKENS => last_end,
                next => start + offset(next) - 1,
            };
            let text = image.get(start + offset(token)..token_end)?;
            let is_token = text.iter().all(u8::is_ascii_graphic) && image[token_end] == 0;
            if is_token { str::from_utf8(text).ok() } else { None }
        };
        let tokens = (0..TOKENS).map(token).collect::<Option<_>>()?;
        start.is_multiple_of(ALIGNMENT).then_some(Self { tokens, start, end })
    }

    /// The type and the name that `compressed` stands for, written to `text`.
    fn expand<'t>(
        &self,
        compressed: &[u8],
        text: &'t mut String,
        budget: &mut SearchBudget,
    ) -> Option<(char, &'t str)> {
        // Tokens may be empty: many bytes can stand for a short name.
        budget.spend(compressed.len())?;
        text.clear();
        for token in compressed {
            text.push_str(self.tokens[usize::from(*token)]);
            if text.len() > MAX_NAME {
                return None;
            }
        }
        budget.spend(text.len())?;
        let kind = text.chars().next()?;
        Some((kind, &text[1..]))
    }
}

/// A list of compressed names.
struct Names<'a> {
    bytes: &'a [u8],
    count: usize,
    /// Where `num_syms` is.
    count_at: usize,
}

impl<'a> Names<'a> {
    /// The list at `at`, if there is one that is followed by its markers.
    fn at(image: Image<'a>, at: usize, budget: &mut SearchBudget) -> Option<Self> {
        let count_at = match image.u32(at - ALIGNMENT)? {
            0 => at.checked_sub(2 * ALIGNMENT)?,
            _ => at - ALIGNMENT,
        };
        let count = image.u32(count_at)? as usize;
        if !(1..=MAX_SYMBOLS).contains(&count) {
            return None;
        }
        let bytes = &image.bytes[at..];
        let mut markers = Vec::new();
        let mut rest = bytes;
        for index in 0..count {
            if index % MARKER_INTERVAL == 0 {
                budget.spend(MARKER_INTERVAL)?;
                markers.push((bytes.len() - rest.len()) as u32);
            }
            (_, rest) = split_name(rest)?;
        }
        let names_end = image.bytes.len() - rest.len();
        let are_markers = |at: usize| {
            let mut places = (at..).step_by(size_of::<u32>()).zip(&markers);
            places.all(|(at, marker)| image.u32(at) == Some(*marker))
        };
        [ALIGNMENT, 2 * ALIGNMENT]
            .into_iter()
            .any(|alignment| are_markers(names_end.next_multiple_of(alignment)))
            .then_some(Self { bytes, count, count_at })
    }

    fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (name, after) = split_name(rest)?;
            rest = after;
            Some(name)
        })
    }
}

/// Splits the first name off a list of compressed names.
fn split_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (low, rest) = bytes.split_first()?;
    let (length, rest) = match low {
        0 => return None,
        ..0x80 => (usize::from(*low), rest),
        0x80.. => {
            let (high, rest) = rest.split_first()?;
            (usize::from(*low & 0x7f) | usize::from(*high) << 7, rest)
        }
    };
    rest.split_at_checked(length)
}

/// How an offset encodes an address.
#[derive(Clone, Copy)]
enum Encoding {
    /// Unsigned, relative to the base.
    Base(u64),
    /// Signed. If negative, the address is base - 1 - offset; otherwise the offset is the address itself, of
    /// a per-CPU variable (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, until 6.14).
    BaseOrPercpu(u64),
    /// Signed, relative to the address of the offset itself (since 7.0).
    Place,
}

/// The addresses of symbols.
struct Addresses<'a> {
    image: Image<'a>,
    offsets_at: usize,
    encoding: Encoding,
}

impl<'a> Addresses<'a> {
    /// The places and encodings in which the addresses of `names` may be.
    fn candidates(
        image: Image<'a>,
        tokens: &TokenTable<'_>,
        names: &Names<'_>,
    ) -> [Option<Self>; 5] {
        const BASE: usize = size_of::<u64>();
        let size = (size_of::<u32>() * names.count).next_multiple_of(BASE);
        let behind = tokens.end;
        let in_front = names.count_at.checked_sub(BASE + size);
        let based = |offsets_at: Option<usize>, encoding: fn(u64) -> Encoding| {
            let offsets_at = offsets_at?;
            let base = image.u64(offsets_at + size)?;
            Some(Self { image, offsets_at, encoding: encoding(base) })
        };
        [
            based(Some(behind), Encoding::BaseOrPercpu),
            based(Some(behind), Encoding::Base),
            based(in_front, Encoding::BaseOrPercpu),
            based(in_front, Encoding::Base),
            Some(Self { image, offsets_at: behind, encoding: Encoding::Place }),
        ]
    }

    fn get(&self, index: usize) -> Option<u64> {
        let at = self.offsets_at + size_of::<u32>() * index;
        let unsigned = self.image.u32(at)?;
        let signed = i64::from(unsigned.cast_signed());
        Some(match self.encoding {
            Encoding::Base(base) => base.wrapping_add(unsigned.into()),
            Encoding::BaseOrPercpu(_) if signed >= 0 => signed.cast_unsigned(),
            Encoding::BaseOrPercpu(base) => base.wrapping_add_signed(-1 - signed),
            Encoding::Place => self.image.address(at).wrapping_add_signed(signed),
        })
    }
}

#[cfg(test)]
#[path = "kallsyms_test.rs"]
mod tests;
