//! The observations of one scenario, as they are made.

use super::{Finding, Kind, Observation, Observe};
use crate::{guest::GuestError, scenarios::Boot};

/// A protection that a kernel may have been built without, or be too old for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// IO_STRICT_DEVMEM: what a driver has claimed is closed, and mappings of it are torn down.
    IoStrictDevmem,
    /// Mappings of PCI BARs by way of sysfs and procfs are torn down too, and procfs asks before it
    /// makes new ones: Linux 5.12.
    PciRevocation,
    /// The virtio-mem region is EXCLUSIVE, whatever the policy for other devices: Linux 5.16.
    ExclusiveRegion,
    /// VFIO denies accesses to BARs that are not decoded: Linux 5.8.
    VfioMemoryCheck,
    /// VFIO tears mappings of BARs down when they are no longer decoded: Linux 5.8.
    VfioZap,
    /// VFIO denies accesses to functions that sleep: Linux 5.19.
    VfioPowerCheck,
    /// No driver binds in an IOMMU group that user space owns: Linux 5.19.
    GroupOwnership,
    /// User space is refused a group in which a driver has bound: Linux 5.19.
    GroupClaim,
}

/// Takes down what a scenario observes.
#[derive(Debug)]
pub struct Observations {
    boot: Option<Boot>,
    lacking: Vec<Protection>,
    list: Vec<Observation>,
}

impl Observations {
    /// None yet, of a kernel that is expected to lack these protections.
    pub fn new(boot: Option<Boot>, lacking: &[Protection]) -> Self {
        Self { boot, lacking: lacking.to_vec(), list: Vec::new() }
    }

    /// Whether the kernel is expected to lack a protection.
    pub fn lacks(&self, protection: Protection) -> bool {
        self.lacking.contains(&protection)
    }

    /// Whether the guest was told not to look at claims.
    pub fn is_relaxed(&self) -> bool {
        self.boot.is_some_and(|boot| boot.parameters().contains("iomem=relaxed"))
    }

    /// What a protected kernel does.
    pub fn check(
        &mut self,
        tried: impl Into<String>,
        expected: impl Into<Finding>,
        observed: impl Observe,
    ) -> Result<(), GuestError> {
        self.add(Kind::Check, tried.into(), expected.into(), observed)
    }

    /// What shows that the check can fail: the same thing where there is no protection.
    pub fn control(
        &mut self,
        tried: impl Into<String>,
        expected: impl Into<Finding>,
        observed: impl Observe,
    ) -> Result<(), GuestError> {
        self.add(Kind::Control, tried.into(), expected.into(), observed)
    }

    /// What a kernel does that has all these protections, and `otherwise` what one does that is known
    /// to lack one of them.
    pub fn check_with(
        &mut self,
        protections: &[Protection],
        tried: impl Into<String>,
        expected: impl Into<Finding>,
        otherwise: impl Into<Finding>,
        observed: impl Observe,
    ) -> Result<(), GuestError> {
        let (kind, expected) = match protections.iter().any(|&protection| self.lacks(protection)) {
            false => (Kind::Check, expected.into()),
            true => (Kind::UnprotectedControl, otherwise.into()),
        };
        self.add(kind, tried.into(), expected, observed)
    }

    /// What a monitor counts, where it does; there is nothing to be held against one that does not.
    pub fn check_count(
        &mut self,
        tried: impl Into<String>,
        expected: u64,
        counted: Option<u64>,
    ) -> Result<(), GuestError> {
        let expected = expected.to_string();
        match counted {
            Some(count) => self.check(tried, expected, count.to_string())?,
            None => self.unasked(tried, expected, "not counted by this monitor"),
        }
        Ok(())
    }

    /// What this guest cannot be asked, and why not.
    pub fn unasked(
        &mut self,
        tried: impl Into<String>,
        expected: impl Into<Finding>,
        why: impl Into<Finding>,
    ) {
        self.push(Kind::Unasked, tried.into(), expected.into(), why.into(), true);
    }

    /// What should be, and `known` what every kernel does instead.
    pub fn check_gap(
        &mut self,
        tried: impl Into<String>,
        expected: impl Into<Finding>,
        known: impl Into<Finding>,
        observed: impl Observe,
    ) -> Result<(), GuestError> {
        let (expected, observed) = (expected.into(), observed.observe()?);
        let is_known = !observed.satisfies(&expected) && observed.satisfies(&known.into());
        let kind = if is_known { Kind::KnownGap } else { Kind::Check };
        let holds = is_known || observed.satisfies(&expected);
        self.push(kind, tried.into(), expected, observed, holds);
        Ok(())
    }

    /// All of them.
    pub fn into_list(self) -> Vec<Observation> {
        self.list
    }

    fn add(
        &mut self,
        kind: Kind,
        tried: String,
        expected: Finding,
        observed: impl Observe,
    ) -> Result<(), GuestError> {
        let observed = observed.observe()?;
        let holds = observed.satisfies(&expected);
        self.push(kind, tried, expected, observed, holds);
        Ok(())
    }

    fn push(
        &mut self,
        kind: Kind,
        tried: String,
        expected: Finding,
        observed: Finding,
        holds: bool,
    ) {
        self.list.push(Observation { boot: self.boot, kind, tried, expected, observed, holds });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Denial, Errno};

    fn denied(denial: impl Into<Denial>) -> Result<(), GuestError> {
        Err(GuestError::Denied { asked: "read a mapping".to_owned(), denial: denial.into() })
    }

    #[test]
    fn a_check_holds_where_what_is_observed_is_what_is_expected() {
        let mut seen = Observations::new(Some(Boot::Plain), &[]);
        seen.check("mmap", Errno::EPERM, denied(Errno::EPERM)).unwrap();
        seen.check("mmap", Errno::EPERM, Ok(())).unwrap();
        seen.control("mmap beside it", Finding::Done, Ok(())).unwrap();
        let seen: Vec<_> = seen.into_list().iter().map(|row| (row.kind, row.holds)).collect();
        assert_eq!(seen, [(Kind::Check, true), (Kind::Check, false), (Kind::Control, true)]);
    }

    #[test]
    fn a_kernel_that_lacks_a_protection_must_fail_its_checks() {
        const LACKING: &[Protection] = &[Protection::IoStrictDevmem];
        for (lacking, observed, kind, holds) in [
            (&[][..], denied(Denial::SIGBUS), Kind::Check, true),
            (&[], Ok(()), Kind::Check, false),
            (LACKING, Ok(()), Kind::UnprotectedControl, true),
            (LACKING, denied(Denial::SIGBUS), Kind::UnprotectedControl, false),
            (&[Protection::ExclusiveRegion], denied(Denial::SIGBUS), Kind::Check, true),
        ] {
            let mut seen = Observations::new(Some(Boot::Plain), lacking);
            let by = [Protection::PciRevocation, Protection::IoStrictDevmem];
            seen.check_with(&by, "read", Denial::SIGBUS, Finding::Done, observed).unwrap();
            let row = seen.into_list().remove(0);
            assert_eq!((row.kind, row.holds), (kind, holds));
        }
    }

    #[test]
    fn a_known_gap_is_told_from_a_closed_one_and_from_a_surprise() {
        for (observed, kind, holds) in [
            (Ok(()), Kind::KnownGap, true),
            (denied(Denial::SIGBUS), Kind::Check, true),
            (denied(Errno::EPERM), Kind::Check, false),
        ] {
            let mut seen = Observations::new(Some(Boot::Plain), &[]);
            seen.check_gap("read", Denial::SIGBUS, Finding::Done, observed).unwrap();
            let row = seen.into_list().remove(0);
            assert_eq!((row.kind, row.holds), (kind, holds));
        }
    }

    #[test]
    fn what_nobody_counts_is_not_held_against_anybody() {
        for (counted, kind, holds) in [
            (Some(0), Kind::Check, true),
            (Some(1), Kind::Check, false),
            (None, Kind::Unasked, true),
        ] {
            let mut seen = Observations::new(Some(Boot::Plain), &[]);
            seen.check_count("accesses", 0, counted).unwrap();
            let row = seen.into_list().remove(0);
            assert_eq!((row.kind, row.holds), (kind, holds));
        }
    }
}
