//! A simple substitute for scripts/kallsyms.c of Linux, for tests and fuzzing: it creates a kernel image with
//! a symbol table.

use std::ops::Range;

/// The order of a kernel's arrays, and their encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Linux 4.20 to 6.1.
    OffsetsFirst,
    /// Linux 6.2 and 6.3.
    OffsetsFirstWithSequence,
    /// Linux 6.4 to 6.14.
    OffsetsLast,
    /// Linux 6.15 to 6.19, or older on one processor.
    OffsetsLastWithoutPercpu,
    /// Linux 7.0.
    PlaceRelative,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::OffsetsFirst,
        Self::OffsetsFirstWithSequence,
        Self::OffsetsLast,
        Self::OffsetsLastWithoutPercpu,
        Self::PlaceRelative,
    ];

    fn alignment(self) -> usize {
        if self == Self::PlaceRelative { 4 } else { 8 }
    }

    /// Whether addresses of per-CPU variables start at 0.
    pub fn has_percpu(self) -> bool {
        !matches!(self, Self::OffsetsLastWithoutPercpu | Self::PlaceRelative)
    }
}

/// A symbol: address, type, name.
pub type Symbol = (u64, char, String);

/// An image under construction.
struct Image {
    bytes: Vec<u8>,
    start: u64,
    layout: Layout,
}

/// Creates an image for the address `start` with the table of `symbols`, sorted by address, and `padding`
/// bytes before and after it. Also returns where in the image the table is.
pub fn encode(
    layout: Layout,
    symbols: &[Symbol],
    start: u64,
    padding: usize,
) -> (Vec<u8>, Range<usize>) {
    let mut image = Image { bytes: vec![0xcc; padding], start, layout };
    image.align();
    let table = image.bytes.len();
    let relative = symbols.iter().map(|symbol| symbol.0).filter(|address| *address >= 1 << 31);
    let base = relative.min().unwrap_or(start);
    let sequence: Vec<u8> =
        (0..symbols.len() as u32).flat_map(|n| n.to_be_bytes().into_iter().skip(1)).collect();
    let offsets_first = matches!(layout, Layout::OffsetsFirst | Layout::OffsetsFirstWithSequence);
    if offsets_first {
        image.offsets(symbols, base);
    }
    let tokens = tokens(symbols);
    image.array((symbols.len() as u32).to_le_bytes());
    let mut names = Vec::new();
    let mut markers = Vec::new();
    for (index, (_, kind, name)) in symbols.iter().enumerate() {
        if index % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        let compressed = compress(&format!("{kind}{name}"), &tokens);
        match compressed.len() {
            length @ ..0x80 => names.push(length as u8),
            length => names.extend([0x80 | length as u8, (length >> 7) as u8]),
        }
        names.extend(compressed);
    }
    image.array(names);
    image.array(markers);
    if layout == Layout::OffsetsFirstWithSequence {
        image.array(sequence.iter().copied());
    }
    let mut token_index = Vec::new();
    let mut token_table = Vec::new();
    for token in &tokens {
        token_index.extend((token_table.len() as u16).to_le_bytes());
        token_table.extend(token.bytes().chain([0]));
    }
    image.array(token_table);
    image.array(token_index);
    if !offsets_first {
        image.offsets(symbols, base);
        image.array(sequence);
    }
    let table = table..image.bytes.len();
    image.bytes.extend(std::iter::repeat_n(0xcc, padding));
    (image.bytes, table)
}

impl Image {
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.layout.alignment()), 0);
    }

    fn array(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.align();
        self.bytes.extend(bytes);
        self.align();
    }

    fn offsets(&mut self, symbols: &[Symbol], base: u64) {
        self.align();
        for (address, ..) in symbols {
            let place = self.start + self.bytes.len() as u64;
            let offset = match self.layout {
                Layout::PlaceRelative => address.wrapping_sub(place),
                layout if !layout.has_percpu() => address.wrapping_sub(base),
                _ if *address < base => *address,
                _ => base.wrapping_sub(*address).wrapping_sub(1),
            };
            self.bytes.extend((offset as u32).to_le_bytes());
        }
        if self.layout != Layout::PlaceRelative {
            self.array(base.to_le_bytes());
        }
    }
}

/// A code that occurs as a character in a name is the token of that character; the other codes are tokens of
/// pairs of characters that occur.
fn tokens(symbols: &[Symbol]) -> Vec<String> {
    let used = |code: u8| {
        symbols.iter().any(|(_, kind, name)| *kind as u8 == code || name.as_bytes().contains(&code))
    };
    let pairs = symbols.iter().flat_map(|(_, _, name)| {
        name.as_bytes().windows(2).map(|pair| String::from_utf8_lossy(pair).into_owned())
    });
    let mut pairs: Vec<String> = pairs.collect();
    pairs.sort();
    pairs.dedup();
    let mut tokens: Vec<String> = (0..=u8::MAX)
        .rev()
        .map(
            |code| {
                if used(code) { char::from(code).into() } else { pairs.pop().unwrap_or_default() }
            },
        )
        .collect();
    tokens.reverse();
    tokens
}

fn compress(name: &str, tokens: &[String]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let longest = |token: &&usize| tokens[**token].len();
        let fitting: Vec<usize> = (0..tokens.len())
            .filter(|token| !tokens[*token].is_empty() && rest.starts_with(&tokens[*token]))
            .collect();
        let token = fitting.iter().max_by_key(longest).expect("every character is a token");
        compressed.push(*token as u8);
        rest = &rest[tokens[*token].len()..];
    }
    compressed
}
