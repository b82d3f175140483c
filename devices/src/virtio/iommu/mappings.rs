//! The mappings of one domain.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use vm_memory::Permissions;

use crate::dma::{MAX_PIECES, PhysicalRange};

/// The mapping that one MAP request made, without its first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    last: u64,
    physical: u64,
    permissions: Permissions,
}

/// Mappings by their first addresses. They never overlap, and are added and removed as a whole.
#[derive(Debug, Default)]
pub struct MappingTable {
    mappings: BTreeMap<u64, Mapping>,
}

/// There is a mapping in the range already.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap;

/// The range does not contain whole mappings only: part of one would be left.
#[derive(Debug, PartialEq, Eq)]
pub struct Split;

/// Why an access is not translated.
#[derive(Debug, PartialEq, Eq)]
pub enum Untranslatable {
    /// This is the first address that is not mapped for the access.
    NotMapped(u64),
    /// From this address on there are more than [`MAX_PIECES`].
    TooManyPieces(u64),
}

impl MappingTable {
    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Maps `range` to as many addresses from `physical` on. The caller has checked that these do not
    /// wrap around.
    pub fn map(
        &mut self,
        range: RangeInclusive<u64>,
        physical: u64,
        permissions: Permissions,
    ) -> Result<(), Overlap> {
        let (first, last) = range.into_inner();
        if self.last_mapping_up_to(last).is_some_and(|(_, mapping)| mapping.last >= first) {
            return Err(Overlap);
        }
        self.mappings.insert(first, Mapping { last, physical, permissions });
        Ok(())
    }

    /// Removes all mappings in `range`, and returns their number. If one of them is not wholly in
    /// `range`, none is removed.
    pub fn unmap(&mut self, range: RangeInclusive<u64>) -> Result<usize, Split> {
        let (first, last) = range.into_inner();
        let goes_on_after = |address| {
            self.last_mapping_up_to(address).is_some_and(|(_, mapping)| mapping.last > address)
        };
        if first.checked_sub(1).is_some_and(goes_on_after) || goes_on_after(last) {
            return Err(Split);
        }
        Ok(self.mappings.extract_if(first..=last, |_, _| true).count())
    }

    /// Where the `length` bytes from `address` on are.
    pub fn translate(
        &self,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Untranslatable> {
        let from = self.last_mapping_up_to(address).map_or(address, |(start, _)| start);
        let mut mappings = self.mappings.range(from..);
        let mut pieces = Vec::new();
        let (mut next, mut rest) = (address, length as u64);
        while rest > 0 {
            if pieces.len() == MAX_PIECES {
                return Err(Untranslatable::TooManyPieces(next));
            }
            let (start, mapping) = mappings
                .next()
                .filter(|(start, mapping)| (**start..=mapping.last).contains(&next))
                .filter(|(_, mapping)| mapping.permissions.allow(access))
                .ok_or(Untranslatable::NotMapped(next))?;
            // One less than the number of bytes, which would overflow if all addresses are one mapping.
            let room = mapping.last - next;
            let address = mapping.physical + (next - start);
            let length = rest.min(room.saturating_add(1));
            pieces.push(PhysicalRange { address, length: length as usize });
            next = next.wrapping_add(length);
            rest -= length;
        }
        Ok(pieces)
    }

    /// Of the mappings that start at `address` or below, the last one.
    fn last_mapping_up_to(&self, address: u64) -> Option<(u64, &Mapping)> {
        self.mappings.range(..=address).next_back().map(|(&start, mapping)| (start, mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 24;
    const PAGE: u64 = 0x1000;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Map { physical: u64, permissions: Permissions },
        Unmap,
        Translate { skip: u64, cut: u64, access: Permissions },
    }

    fn step() -> impl Strategy<Value = Step> {
        let permissions = || {
            prop_oneof![
                Just(Permissions::No),
                Just(Permissions::Read),
                Just(Permissions::Write),
                Just(Permissions::ReadWrite),
                Just(Permissions::ReadWrite),
            ]
        };
        let access = prop_oneof![Just(Permissions::Read), Just(Permissions::Write)];
        prop_oneof![
            4 => (0..1000_u64, permissions()).prop_map(|(page, permissions)| Step::Map {
                physical: page * PAGE,
                permissions,
            }),
            2 => Just(Step::Unmap),
            2 => (0..PAGE, 0..PAGE, access)
                .prop_map(|(skip, cut, access)| Step::Translate { skip, cut, access }),
        ]
    }

    /// Pages, from the first one to the last one.
    fn pages() -> impl Strategy<Value = (u64, u64)> {
        // Mostly few, so that there is room for many mappings.
        (0..PAGES, prop_oneof![4 => 0..3_u64, 1 => 0..PAGES])
            .prop_map(|(first, more)| (first, (first + more).min(PAGES - 1)))
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Page {
        /// Which MAP request made it.
        mapping: usize,
        physical: u64,
        permissions: Permissions,
    }

    /// A simple, slow implementation.
    struct Reference([Option<Page>; PAGES as usize]);

    impl Reference {
        fn is_split_by(&self, first: usize, last: usize) -> bool {
            let mapping = |page: usize| self.0.get(page)?.map(|page| page.mapping);
            let joined = |a, b| mapping(a).is_some() && mapping(a) == mapping(b);
            first > 0 && joined(first - 1, first) || joined(last, last + 1)
        }

        fn mappings(&self, pages: &[Option<Page>]) -> usize {
            let mut mappings: Vec<usize> =
                pages.iter().flatten().map(|page| page.mapping).collect();
            mappings.dedup();
            mappings.len()
        }

        /// Byte by byte would be too slow: the first of each page, and of the range.
        fn translate(&self, first: u64, last: u64, access: Permissions) -> Result<Vec<u64>, u64> {
            let starts = (first / PAGE..=last / PAGE).map(|page| first.max(page * PAGE));
            starts
                .map(|address| match self.0[(address / PAGE) as usize] {
                    Some(page) if page.permissions.allow(access) => {
                        Ok(page.physical + address % PAGE)
                    }
                    _ => Err(address),
                })
                .collect()
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_one_page_by_page(
            steps in proptest::collection::vec((step(), pages()), 1..80)
        ) {
            let mut table = MappingTable::default();
            let mut reference = Reference([None; PAGES as usize]);
            for (mapping, (step, (first_page, last_page))) in steps.into_iter().enumerate() {
                let (first, last) = (first_page * PAGE, last_page * PAGE + (PAGE - 1));
                let pages = first_page as usize..=last_page as usize;
                match step {
                    Step::Map { physical, permissions } => {
                        let free = reference.0[pages.clone()].iter().all(Option::is_none);
                        let expected = if free { Ok(()) } else { Err(Overlap) };
                        prop_assert_eq!(table.map(first..=last, physical, permissions), expected);
                        if free {
                            for (page, physical) in pages.zip((physical..).step_by(0x1000)) {
                                reference.0[page] = Some(Page { mapping, physical, permissions });
                            }
                        }
                    }
                    Step::Unmap => {
                        let split = reference.is_split_by(*pages.start(), *pages.end());
                        let count = reference.mappings(&reference.0[pages.clone()]);
                        let expected = if split { Err(Split) } else { Ok(count) };
                        prop_assert_eq!(table.unmap(first..=last), expected);
                        if !split {
                            reference.0[pages].fill(None);
                        }
                    }
                    Step::Translate { skip, cut, access } => {
                        let (first, last) = (first + skip, last - cut);
                        if last < first {
                            continue;
                        }
                        let length = (last - first + 1) as usize;
                        let pieces = table.translate(first, length, access);
                        let expected = reference.translate(first, last, access);
                        if let Ok(pieces) = &pieces {
                            let total: usize = pieces.iter().map(|piece| piece.length).sum();
                            prop_assert_eq!(total, length);
                        }
                        let pieces = pieces.map(|pieces| page_starts(first, &pieces));
                        let expected = expected.map_err(Untranslatable::NotMapped);
                        prop_assert_eq!(pieces, expected);
                    }
                }
                prop_assert_eq!(table.len(), reference.mappings(&reference.0));
            }
        }
    }

    #[test]
    fn an_access_of_too_many_pieces_is_refused_where_the_first_of_those_starts() {
        let mut table = MappingTable::default();
        for start in (0..=MAX_PIECES as u64).map(|page| page * PAGE) {
            table.map(start..=start + (PAGE - 1), start, Permissions::Read).unwrap();
        }
        let translate = |length| table.translate(0, length, Permissions::Read);
        let most = MAX_PIECES * PAGE as usize;
        assert_eq!(translate(most).unwrap().len(), MAX_PIECES);
        assert_eq!(translate(most + 1), Err(Untranslatable::TooManyPieces(most as u64)));
    }

    /// Where the first byte and the first one of each further page are.
    fn page_starts(first: u64, pieces: &[PhysicalRange]) -> Vec<u64> {
        let mut address = first;
        let mut starts = Vec::new();
        for piece in pieces {
            let end = address + piece.length as u64;
            let offsets = (address..end).filter(|at| *at == first || at % PAGE == 0);
            starts.extend(offsets.map(|at| piece.address + (at - address)));
            address = end;
        }
        starts
    }

    #[test]
    fn all_addresses_may_be_one_mapping() {
        let mut table = MappingTable::default();
        table.map(0..=u64::MAX, 0, Permissions::Read).unwrap();
        assert_eq!(table.map(7..=7, 0, Permissions::Read), Err(Overlap));
        let piece = PhysicalRange { address: u64::MAX - 1, length: 2 };
        assert_eq!(table.translate(u64::MAX - 1, 2, Permissions::Read), Ok(vec![piece]));
        assert_eq!(table.unmap(0..=u64::MAX - 1), Err(Split));
        assert_eq!(table.unmap(1..=u64::MAX), Err(Split));
        assert_eq!(table.unmap(0..=u64::MAX), Ok(1));
        assert_eq!(table.unmap(0..=u64::MAX), Ok(0));
    }

    #[test]
    fn no_address_follows_the_last_one() {
        let mut table = MappingTable::default();
        table.map(u64::MAX - 9..=u64::MAX, 0, Permissions::Write).unwrap();
        table.map(0..=9, 0, Permissions::Write).unwrap();
        let access = table.translate(u64::MAX, 2, Permissions::Write);
        assert!(access.is_err());
    }
}
