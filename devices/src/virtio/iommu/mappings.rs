//! The mappings of one domain.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use vm_memory::Permissions;

use crate::dma::PhysicalRange;

/// What one MAP request made, but for its first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    last: u64,
    physical: u64,
    permissions: Permissions,
}

/// Mappings by their first addresses. They never overlap, and they come and go as a whole.
#[derive(Debug, Default)]
pub struct MappingTable {
    mappings: BTreeMap<u64, Mapping>,
}

/// There is a mapping in the range already.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap;

/// Part of a mapping would be left.
#[derive(Debug, PartialEq, Eq)]
pub struct Split;

/// The first address that is not mapped for the access.
#[derive(Debug, PartialEq, Eq)]
pub struct NotMapped(pub u64);

impl MappingTable {
    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Maps `range` to as many addresses from `physical` on. That these exist is the caller's to
    /// have checked.
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

    /// Removes all mappings in `range`, and gives their number. Those are whole mappings, or none
    /// is removed.
    pub fn unmap(&mut self, range: RangeInclusive<u64>) -> Result<usize, Split> {
        let (first, last) = range.into_inner();
        let covers = |start: u64, mapping: &Mapping| first <= start && mapping.last <= last;
        let before = first.checked_sub(1).and_then(|before| self.last_mapping_up_to(before));
        let split_at_first = before.is_some_and(|(_, mapping)| mapping.last >= first);
        let split_at_last = self
            .last_mapping_up_to(last)
            .is_some_and(|(start, mapping)| mapping.last >= first && !covers(start, mapping));
        if split_at_first || split_at_last {
            return Err(Split);
        }
        let inside: Vec<u64> = self.mappings.range(first..=last).map(|(&start, _)| start).collect();
        for start in &inside {
            self.mappings.remove(start);
        }
        Ok(inside.len())
    }

    /// Where the `length` bytes from `address` on are.
    pub fn translate(
        &self,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, NotMapped> {
        let mut pieces = Vec::new();
        let mut next = address;
        let mut rest = length as u64;
        while rest > 0 {
            let (start, mapping) = self
                .last_mapping_up_to(next)
                .filter(|(_, mapping)| mapping.last >= next && mapping.permissions.allow(access))
                .ok_or(NotMapped(next))?;
            // Less one, so that it fits whatever the mapping is.
            let room = mapping.last - next;
            let length = rest.min(room.saturating_add(1));
            let address = mapping.physical + (next - start);
            pieces.push(PhysicalRange { address, length: length as usize });
            rest -= length;
            if rest > 0 {
                next = mapping.last.checked_add(1).ok_or(NotMapped(mapping.last))?;
            }
        }
        Ok(pieces)
    }

    /// Of the mappings that start at `address` or below, the last one.
    fn last_mapping_up_to(&self, address: u64) -> Option<(u64, &Mapping)> {
        self.mappings.range(..=address).next_back().map(|(&start, mapping)| (start, mapping))
    }
}
