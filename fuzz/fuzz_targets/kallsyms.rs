//! Memory of kernels that have symbol tables: valid ones, damaged ones, and bytes that only look like
//! one.
//!
//! A valid table must be found, and its names read. Any other one must do no harm: if a table is found
//! in it, the symbol with the known address must have its name, and all names must be printable.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use moat_fuzz::kallsyms_encoder::{Layout, Symbol, encode};
use vmm::symbols::kallsyms::{ENTRY, find};

/// Where the image is.
const START: u64 = 0xffff_ffff_8100_0000;
/// Address of [`ENTRY`].
const ENTRY_ADDRESS: u64 = START + 0x40;

/// A function: its distance from the one before, and its name.
#[derive(Debug, Arbitrary)]
struct Function {
    distance: u16,
    name: Vec<u8>,
}

/// A change that the guest makes to its memory.
#[derive(Debug, Arbitrary)]
enum Damage {
    SetByte { at: u16, value: u8 },
    SetWord { at: u16, value: u32 },
    Insert { at: u16, bytes: Vec<u8> },
    Repeat { at: u16, length: u8, times: u8 },
    Cut { at: u16 },
}

#[derive(Debug, Arbitrary)]
struct Guest {
    layout: u8,
    padding: u8,
    functions: Vec<Function>,
    damages: Vec<Damage>,
}

fuzz_target!(|guest: Guest| {
    let layout = Layout::ALL[usize::from(guest.layout) % Layout::ALL.len()];
    let symbols = symbols(&guest.functions);
    let (mut image, _) = encode(layout, &symbols, START, guest.padding.into());
    guest.damages.iter().for_each(|damage| do_damage(&mut image, damage));
    let found = find(&image, START, ENTRY_ADDRESS);
    if guest.damages.is_empty() {
        assert_eq!(found.as_ref().map(|found| found.iter().len()), Some(symbols.len()));
    }
    let Some(found) = found else { return };
    let entry = found.resolve(ENTRY_ADDRESS).expect("it was found by that");
    assert_eq!(entry.offset, 0);
    assert!(found.iter().any(|symbol| symbol == (ENTRY_ADDRESS, entry)));
    assert!(found.iter().any(|(address, symbol)| (address, symbol.name) == (ENTRY_ADDRESS, ENTRY)));
    for (_, symbol) in found.iter() {
        assert!(symbol.name.bytes().all(|byte| byte.is_ascii_graphic()), "{symbol:?}");
    }
});

/// A few functions. The first is the one whose address is known.
fn symbols(functions: &[Function]) -> Vec<Symbol> {
    const FUNCTIONS: usize = 300;
    const NAME: usize = 200;
    let mut symbols = vec![(ENTRY_ADDRESS, 'T', ENTRY.to_owned())];
    let mut address = ENTRY_ADDRESS;
    for Function { distance, name } in functions.iter().take(FUNCTIONS) {
        address += u64::from(*distance) + 1;
        let name = name.iter().take(NAME).map(|byte| char::from(b'_' + byte % 28));
        symbols.push((address, 't', name.collect()));
    }
    symbols
}

fn do_damage(image: &mut Vec<u8>, damage: &Damage) {
    // Only the first bytes of a list; libFuzzer makes them long.
    const INSERTED: usize = 64;
    let size = image.len();
    let place = |at: u16| usize::from(at) % (size + 1);
    match damage {
        Damage::SetByte { at, value } => {
            if let Some(byte) = image.get_mut(place(*at)) {
                *byte = *value;
            }
        }
        Damage::SetWord { at, value } => {
            let at = place(*at) & !3;
            if let Some(word) = image.get_mut(at..at + 4) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        Damage::Insert { at, bytes } => {
            let at = place(*at);
            image.splice(at..at, bytes.iter().take(INSERTED).copied());
        }
        Damage::Repeat { at, length, times } => {
            let at = place(*at);
            let end = size.min(at + usize::from(*length));
            let piece = image[at..end].repeat(usize::from(*times));
            image.splice(at..at, piece);
        }
        Damage::Cut { at } => image.truncate(place(*at)),
    }
}
