//! Which function decodes which addresses of one address space, and which functions have ranges that
//! they do not decode now.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::completer::{Completer, Target};
use super::doorbell::PlacedDoorbell;
use super::{AddressSpace, BaseRegister, FunctionAddress, RefusalReason};

/// Addresses from `first` to `last`, both included, so that a range may end where its address
/// space does. None if `first` is above `last`, as in a closed window of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
}

impl Span {
    /// Every address.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// `size` addresses, at least one. What would wrap around is cut off.
    pub fn sized(first: u64, size: u64) -> Self {
        Self { first, last: first.saturating_add(size - 1) }
    }

    pub fn contains(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    /// The smallest range that contains both.
    pub fn hull(&self, other: &Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// The addresses in both, if any.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }
}

/// A range of addresses that a target decodes.
pub(super) struct Claim {
    last: u64,
    /// Where the target's offset 0 is.
    base: u64,
    completer: Arc<Completer>,
    target: Target,
}

/// A range that a function has registers for, whether or not it decodes it.
pub(super) struct Stray {
    pub span: Span,
    pub completer: Arc<Completer>,
    pub function: FunctionAddress,
    pub register: BaseRegister,
    pub reason: RefusalReason,
}

/// The map of one address space.
#[derive(Default)]
pub(super) struct AddressMap {
    /// By first address; disjoint.
    claims: BTreeMap<u64, Claim>,
    /// Where ranges are programmed to be now.
    pub programmed: Vec<Stray>,
    /// Where ranges were last decoded.
    pub remembered: Vec<Stray>,
}

/// Where an access goes.
pub(super) struct Route {
    pub completer: Arc<Completer>,
    pub target: Target,
    pub offset: u64,
    /// Bytes from there to the end of what the target decodes, as far as they can be counted.
    pub room: usize,
}

impl AddressMap {
    /// Gives `span` to a target whose offset 0 is at `base`, less what was claimed before.
    pub fn claim(&mut self, span: Span, base: u64, completer: &Arc<Completer>, target: &Target) {
        let before = self.claims.range(..span.first).next_back();
        let taken: Vec<Span> = before
            .into_iter()
            .chain(self.claims.range(span.first..=span.last))
            .map(|(&first, claim)| Span { first, last: claim.last })
            .filter(|taken| taken.intersect(&span).is_some())
            .collect();
        let mut next = Some(span.first);
        for taken in taken {
            if let Some(first) = next
                && first < taken.first
            {
                self.insert(Span { first, last: taken.first - 1 }, base, completer, target);
            }
            next = taken.last.checked_add(1);
        }
        if let Some(first) = next
            && first <= span.last
        {
            self.insert(Span { first, last: span.last }, base, completer, target);
        }
    }

    fn insert(&mut self, span: Span, base: u64, completer: &Arc<Completer>, target: &Target) {
        let (completer, target) = (Arc::clone(completer), target.clone());
        self.claims.insert(span.first, Claim { last: span.last, base, completer, target });
    }

    /// What decodes `address`.
    pub fn route(&self, address: u64) -> Option<Route> {
        let (_, claim) = self.claims.range(..=address).next_back()?;
        let beyond = claim.last.checked_sub(address)?;
        Some(Route {
            completer: Arc::clone(&claim.completer),
            target: claim.target.clone(),
            offset: address - claim.base,
            room: usize::try_from(beyond).unwrap_or(usize::MAX).saturating_add(1),
        })
    }

    /// The range that would contain `address` if its function decoded it. Where a range is programmed
    /// to be now takes precedence over where another one was decoded last.
    pub fn stray(&self, address: u64) -> Option<&Stray> {
        self.programmed.iter().chain(&self.remembered).find(|stray| stray.span.contains(address))
    }
}

/// The maps of both address spaces.
#[derive(Default)]
pub(super) struct DecodeMap {
    pub memory: AddressMap,
    pub io: AddressMap,
    /// All doorbells, in the order of their functions.
    pub doorbells: Vec<PlacedDoorbell>,
}

impl DecodeMap {
    pub fn space(&self, space: AddressSpace) -> &AddressMap {
        match space {
            AddressSpace::Memory => &self.memory,
            AddressSpace::Io => &self.io,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_machine::{Messages, function};
    use super::super::{BarIndex, InterruptPin};
    use super::*;

    fn span() -> impl Strategy<Value = Span> {
        let address = prop_oneof![0..24_u64, u64::MAX - 24..=u64::MAX];
        (address, 1..16_u64).prop_map(|(first, size)| Span::sized(first, size))
    }

    proptest! {
        #[test]
        fn the_first_to_claim_an_address_gets_it(spans in prop::collection::vec(span(), 0..12)) {
            let (function, _) = function(InterruptPin::A, &Arc::new(Messages::default()), &Arc::default());
            let mut map = AddressMap::default();
            let targets = BarIndex::ALL.into_iter().cycle();
            for (&span, bar) in spans.iter().zip(targets.clone()) {
                map.claim(span, span.first, &function.completer, &Target::Device(bar));
            }
            prop_assert!(map.claims.len() <= 2 * spans.len());
            let naive = |address| {
                let mut claims = spans.iter().zip(targets.clone());
                claims.find(|(span, _)| span.contains(address))
            };
            for address in (0..48).chain(u64::MAX - 48..=u64::MAX) {
                let found = map.route(address).map(|route| {
                    let bar = match route.target {
                        Target::Device(bar) => Some(bar),
                        _ => None,
                    };
                    (address - route.offset, bar, address + (route.room as u64 - 1))
                });
                let Some((span, bar)) = naive(address) else {
                    prop_assert!(found.is_none());
                    continue;
                };
                let (base, found_bar, last) = found.unwrap();
                prop_assert_eq!((base, found_bar), (span.first, Some(bar)));
                prop_assert_eq!(naive(last), Some((span, bar)));
            }
        }
    }
}
