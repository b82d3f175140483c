//! Samples of a guest's /proc/kallsyms. All of it would take many minutes over a serial port.

use testvm::guest::{File, OpenFlags, Process};
use vmm::symbols::KERNEL_HALF;

/// The file, of which only pieces are read.
pub struct Kallsyms(File);

/// A symbol of the kernel itself.
pub struct KernelSymbol {
    pub address: u64,
    pub kind: String,
    pub name: String,
}

impl Kallsyms {
    pub fn open(process: &Process) -> Self {
        Self(process.open("/proc/kallsyms", OpenFlags::RDONLY).unwrap())
    }

    /// The symbols of whole lines in a piece, without those of modules.
    fn piece(&self, offset: u64, length: u32) -> Vec<KernelSymbol> {
        let text = String::from_utf8(self.0.read_at(offset, length).unwrap()).unwrap();
        let whole = text.find('\n').map_or("", |start| &text[start + 1..]);
        let whole = &whole[..whole.rfind('\n').unwrap_or(0)];
        let symbol = |line: &str| match *Vec::from_iter(line.split_whitespace()) {
            [address, kind, name] => Some(KernelSymbol {
                address: u64::from_str_radix(address, 16).unwrap(),
                kind: kind.to_owned(),
                name: name.to_owned(),
            }),
            _ => None,
        };
        whole.lines().filter_map(symbol).collect()
    }

    /// Where the kernel's image starts. What comes before in the list are per-CPU variables.
    pub fn start_of_image(&self) -> u64 {
        const PIECE: u32 = 1000;
        let starts = |symbol: &KernelSymbol| symbol.address >= KERNEL_HALF;
        let (mut before, mut behind) = (0, 1 << 20);
        while behind - before > 100 {
            let middle = u64::midpoint(before, behind);
            match self.piece(middle, PIECE).first() {
                Some(first) if !starts(first) => before = middle,
                _ => behind = middle,
            }
        }
        let symbol = self.piece(before, PIECE).into_iter().find(starts);
        symbol.expect("the image starts here").address
    }

    /// Functions from everywhere in the kernel, with all names that they have.
    pub fn sample(&self) -> Vec<KernelSymbol> {
        let pieces = (0..).step_by(400_000).map(|offset| self.piece(offset, 2000));
        let pieces = pieces.take_while(|piece| !piece.is_empty());
        let functions = pieces.flat_map(|piece| {
            // Symbols at the edges may have further names outside of the piece.
            let edges = [piece[0].address, piece[piece.len() - 1].address];
            piece.into_iter().filter(move |symbol| !edges.contains(&symbol.address))
        });
        functions.filter(|symbol| "TtWw".contains(&symbol.kind)).collect()
    }
}
