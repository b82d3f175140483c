//! Records what a case observes.

use std::fmt::Display;

use testvm::vm::VmError;

use super::{Expected, Finding, IntoFinding, Observation, Profile, Role};

/// Records what a case observes, in the order in which it does.
#[derive(Debug)]
pub struct Recorder {
    profile: Option<Profile>,
    state: String,
    observations: Vec<Observation>,
}

impl Recorder {
    /// An empty record of a guest, or of a kernel's configuration.
    pub fn new(profile: Option<Profile>) -> Self {
        Self { profile, state: String::new(), observations: Vec::new() }
    }

    /// The guest that is observed runs with `iomem=relaxed`.
    pub fn is_relaxed(&self) -> bool {
        self.profile.is_some_and(|profile| profile.parameters().contains("iomem=relaxed"))
    }

    /// The state in which everything is tried from now on, until this is called again.
    pub fn when(&mut self, state: impl Display) {
        self.state = state.to_string();
    }

    /// From now on no state is recorded.
    pub fn clear_state(&mut self) {
        self.state.clear();
    }

    /// Records what a protected kernel should do.
    pub fn check(
        &mut self,
        tried: impl Display,
        expected: impl Into<Expected>,
        observed: impl IntoFinding,
    ) -> Result<(), VmError> {
        let observed = observed.into_finding()?;
        self.add(Role::Check, tried, expected.into(), observed);
        Ok(())
    }

    /// Records what a kernel that checks claims should do. With `iomem=relaxed` no kernel does, and the same
    /// attempt is a control.
    pub fn check_claim(
        &mut self,
        tried: impl Display,
        expected: impl Into<Expected>,
        observed: impl IntoFinding,
    ) -> Result<(), VmError> {
        let expected = expected.into();
        if !self.is_relaxed() {
            return self.check(tried, expected, observed);
        }
        match expected.unprotected.and_then(|unprotected| unprotected.finding) {
            Some(unprotected) => self.control(tried, unprotected, observed),
            None => Ok(()),
        }
    }

    /// Records what shows that a check can fail: the same attempt without protection.
    pub fn control(
        &mut self,
        tried: impl Display,
        expected: impl Into<Finding>,
        observed: impl IntoFinding,
    ) -> Result<(), VmError> {
        let observed = observed.into_finding()?;
        self.add(Role::Control, tried, expected.into().into(), observed);
        Ok(())
    }

    /// Records what a monitor counts; one that does not count is not judged.
    pub fn check_count(
        &mut self,
        tried: impl Display,
        expected: impl Into<Expected>,
        counted: Option<u64>,
    ) {
        match counted {
            Some(count) => self.add(Role::Check, tried, expected.into(), Finding::Count(count)),
            None => self.unasked(tried, expected, "not counted by this monitor"),
        }
    }

    /// Records what cannot be tried in this guest, and why.
    pub fn unasked(
        &mut self,
        tried: impl Display,
        expected: impl Into<Expected>,
        why: impl Into<Finding>,
    ) {
        self.add(Role::Unasked, tried, expected.into(), why.into());
    }

    /// All that was observed.
    pub fn into_observations(self) -> Vec<Observation> {
        self.observations
    }

    fn add(&mut self, role: Role, tried: impl Display, expected: Expected, observed: Finding) {
        let tried = match self.state.as_str() {
            "" => tried.to_string(),
            state => format!("{state}: {tried}"),
        };
        let profile = self.profile;
        self.observations.push(Observation { profile, role, tried, expected, observed });
    }
}

#[cfg(test)]
mod tests {
    use testvm::guest::{Denial, Errno, GuestError};

    use super::*;
    use crate::framework::Kind;

    fn denied(denial: impl Into<Denial>) -> Result<(), GuestError> {
        Err(GuestError::Denied { asked: "read a mapping".to_owned(), denial: denial.into() })
    }

    #[test]
    fn a_check_holds_where_what_is_observed_is_what_is_expected() {
        let mut t = Recorder::new(Some(Profile::Plain));
        t.check("mmap", Errno::EPERM, denied(Errno::EPERM)).unwrap();
        t.check("mmap", Errno::EPERM, Ok(())).unwrap();
        t.control("mmap beside it", Finding::Done, Ok(())).unwrap();
        let judged: Vec<_> = t
            .into_observations()
            .iter()
            .map(|observation| observation.judge(&[]))
            .map(|judgement| (judgement.kind, judgement.holds))
            .collect();
        assert_eq!(judged, [(Kind::Check, true), (Kind::Check, false), (Kind::Control, true)]);
    }

    #[test]
    fn the_state_goes_with_everything_that_is_tried_in_it() {
        let mut t = Recorder::new(Some(Profile::Plain));
        t.check("mmap", Finding::Done, Ok(())).unwrap();
        t.when("claimed");
        t.check("mmap", Errno::EPERM, denied(Errno::EPERM)).unwrap();
        t.check("read", Denial::SIGBUS, denied(Denial::SIGBUS)).unwrap();
        t.clear_state();
        t.check("mmap", Finding::Done, Ok(())).unwrap();
        let tried: Vec<_> = t.into_observations().into_iter().map(|seen| seen.tried).collect();
        assert_eq!(tried, ["mmap", "claimed: mmap", "claimed: read", "mmap"]);
    }

    #[test]
    fn what_the_monitor_does_not_count_is_not_judged() {
        for (counted, kind, holds) in [
            (Some(0), Kind::Check, true),
            (Some(1), Kind::Check, false),
            (None, Kind::Unasked, true),
        ] {
            let mut t = Recorder::new(Some(Profile::Plain));
            t.check_count("accesses", Finding::Count(0), counted);
            let observation = t.into_observations().remove(0);
            let judgement = observation.judge(&[]);
            assert_eq!((judgement.kind, judgement.holds), (kind, holds));
        }
    }
}
