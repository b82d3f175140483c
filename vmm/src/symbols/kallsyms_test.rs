use std::ops::Range;

use proptest::prelude::*;

use super::super::kallsyms_encoder::{Layout, Symbol, encode};
use super::*;

const START: u64 = 0xffff_ffff_9d20_0000;
const ENTRY_ADDRESS: u64 = START + 0x40;

fn is_code((_, kind, _): &&Symbol) -> bool {
    "TtWw".contains(*kind)
}

/// Symbols as a kernel has them: maybe per-CPU variables, then code and data.
fn symbols(count: Range<usize>) -> impl Strategy<Value = Vec<Symbol>> {
    let symbol = |kinds, addresses: Range<u64>, length: Range<usize>| {
        let name = prop::collection::vec(
            prop::sample::select(b"abcdefghijklmnopqrstuvwxyz_.0189".to_vec()),
            length,
        );
        let name = name.prop_map(|name| String::from_utf8(name).unwrap());
        (addresses, prop::sample::select(Vec::from_iter(str::chars(kinds))), name)
    };
    let image = START - 0x20_0000..START + 0x400_0000;
    let percpu = prop::collection::vec(symbol("AD", 0..0x3_0000, 1..20), 0..3);
    let short = prop::collection::vec(symbol("TtWwDdBbRr", image.clone(), 1..20), count);
    let long = prop::collection::vec(symbol("tw", image, 300..500), 0..3);
    (percpu, short, long).prop_map(|lists| {
        let entry = (ENTRY_ADDRESS, 'T', ENTRY.to_owned());
        let mut all = [lists.0, lists.1, lists.2, vec![entry]].concat();
        all.sort();
        all
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    prop::sample::select(Layout::ALL.to_vec())
}

/// The symbols that a kernel of this layout can contain.
fn encodable(layout: Layout, symbols: &[Symbol]) -> Vec<Symbol> {
    let is_encodable = |symbol: &&Symbol| layout.has_percpu() || symbol.0 >= KERNEL_HALF;
    symbols.iter().filter(is_encodable).cloned().collect()
}

/// Asserts that `found` has the functions of `expected`, and nothing else.
fn assert_same(found: &Symbols, expected: &[Symbol]) {
    for (address, ..) in expected.iter().filter(is_code) {
        let symbol = found.resolve(*address).unwrap();
        let is_same = |(at, _, name): &&Symbol| at == address && name == symbol.name;
        assert!(expected.iter().filter(is_code).any(|symbol| is_same(&symbol)), "{symbol}");
        assert_eq!((symbol.offset, symbol.module), (0, None));
    }
    assert_eq!(found.iter().len(), expected.iter().filter(is_code).count());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_layout_is_found_and_read(
        symbols in symbols(0..600), layout in layout(), padding in 0..5000_usize,
    ) {
        let symbols = encodable(layout, &symbols);
        let (image, _) = encode(layout, &symbols, START, padding);
        assert_same(&find(&image, START, ENTRY_ADDRESS).expect("a table"), &symbols);
        assert!(find(&image, START, ENTRY_ADDRESS + 8).is_none(), "an entry elsewhere");
        assert!(find(&image, START + 8, ENTRY_ADDRESS + 8).is_none() || layout == Layout::PlaceRelative);
    }

    #[test]
    fn a_broken_table_does_no_harm(
        symbols in symbols(0..40),
        layout in layout(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let symbols = encodable(layout, &symbols);
        let (mut image, table) = encode(layout, &symbols, START, 64);
        for (place, byte) in changes {
            image[table.start + place.index(table.len())] = byte;
        }
        let is_sound = |image: &[u8]| {
            let found = find(image, START, ENTRY_ADDRESS);
            found.is_none_or(|found| found.address_of(ENTRY) == Some(ENTRY_ADDRESS))
        };
        assert!(is_sound(&image));
        assert!(is_sound(&image[..cut.index(image.len())]));
    }

    #[test]
    fn random_bytes_contain_no_table(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        assert!(find(&bytes, START, ENTRY_ADDRESS).is_none());
    }
}

#[test]
fn expanding_empty_tokens_spends_the_budget() {
    let tokens = TokenTable { tokens: vec![""; TOKENS], start: 0, end: 0 };
    let (mut text, mut budget) = (String::new(), SearchBudget(1000));
    assert!(tokens.expand(&[0; 999], &mut text, &mut budget).is_none(), "an empty name");
    assert_eq!(budget.0, 1);
    assert!(tokens.expand(&[0; 2], &mut text, &mut budget).is_none());
    assert!(budget.check().is_none());
}

#[test]
fn a_search_ends_when_its_budget_is_spent() {
    // A list of a million names without markers starts at every 8th byte.
    const LISTS: usize = 1 << 20;
    let entry = (ENTRY_ADDRESS, 'T', ENTRY.to_owned());
    let (tail, table) = encode(Layout::OffsetsLast, &[entry], START, 0);
    let mut image = [7, 0, 0x0f, 0, 0, 0, 0, 0].repeat(LISTS);
    image.extend(&tail[..16]);
    image.extend(&tail[table]);
    let tokens = TokenTable::all(Image { bytes: &image, start: START }).next().unwrap();
    let mut budget = SearchBudget::default();
    let image = Image { bytes: &image, start: START };
    assert!(find_names(image, &tokens, ENTRY_ADDRESS + 8, &mut budget).is_none());
    assert!(budget.check().is_none(), "{} left", budget.0);
}
