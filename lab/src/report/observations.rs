//! The observations of one scenario, as they are made.

use super::{Finding, Kind, Observation, Observe};
use crate::{guest::GuestError, scenarios::Boot};

/// What a kernel is expected to do about mappings that are held when a driver claims the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// It tears them down.
    Present,
    /// It leaves them: it was built without IO_STRICT_DEVMEM.
    Absent,
}

/// Takes down what a scenario observes.
#[derive(Debug)]
pub struct Observations {
    boot: Option<Boot>,
    protection: Protection,
    list: Vec<Observation>,
}

impl Observations {
    /// None yet.
    pub fn new(boot: Option<Boot>, protection: Protection) -> Self {
        Self { boot, protection, list: Vec::new() }
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

    /// What a kernel does that was built with IO_STRICT_DEVMEM, and `otherwise` what one does that
    /// was built without.
    pub fn check_revoked(
        &mut self,
        tried: impl Into<String>,
        expected: impl Into<Finding>,
        otherwise: impl Into<Finding>,
        observed: impl Observe,
    ) -> Result<(), GuestError> {
        let (kind, expected) = match self.protection {
            Protection::Present => (Kind::Check, expected.into()),
            Protection::Absent => (Kind::UnprotectedControl, otherwise.into()),
        };
        self.add(kind, tried.into(), expected, observed)
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
        self.list.push(Observation { boot: self.boot, kind, tried, expected, observed, holds });
        Ok(())
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
        let mut seen = Observations::new(Some(Boot::Plain), Protection::Present);
        seen.check("mmap", Errno::EPERM, denied(Errno::EPERM)).unwrap();
        seen.check("mmap", Errno::EPERM, Ok(())).unwrap();
        seen.control("mmap beside it", Finding::Done, Ok(())).unwrap();
        let seen: Vec<_> = seen.into_list().iter().map(|row| (row.kind, row.holds)).collect();
        assert_eq!(seen, [(Kind::Check, true), (Kind::Check, false), (Kind::Control, true)]);
    }

    #[test]
    fn an_unprotected_kernel_must_fail_the_checks_of_revocation() {
        for (protection, observed, kind, holds) in [
            (Protection::Present, denied(Denial::SIGBUS), Kind::Check, true),
            (Protection::Present, Ok(()), Kind::Check, false),
            (Protection::Absent, Ok(()), Kind::UnprotectedControl, true),
            (Protection::Absent, denied(Denial::SIGBUS), Kind::UnprotectedControl, false),
        ] {
            let mut seen = Observations::new(Some(Boot::Plain), protection);
            seen.check_revoked("read", Denial::SIGBUS, Finding::Done, observed).unwrap();
            let row = seen.into_list().remove(0);
            assert_eq!((row.kind, row.holds), (kind, holds));
        }
    }
}
