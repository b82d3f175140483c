//! One thing that was tried, and how its result is judged.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Expected, Finding, Mitigation, Profile};

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// In which guest; none for what was read from a kernel's configuration.
    pub profile: Option<Profile>,
    /// What it is for.
    pub role: Role,
    /// What was tried, and in which state.
    pub tried: String,
    /// The expected result.
    pub expected: Expected,
    /// The result.
    pub observed: Finding,
}

/// What an observation is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It shows that there is protection.
    Check,
    /// It shows that the check can fail: without protection the same attempt has another result.
    Control,
    /// It was not made: the monitor does not count it, or this guest does not have what it needs.
    Unasked,
}

/// What an observation turns out to be on a kernel that is expected to lack certain mitigations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The protection is there.
    Check,
    /// Without the protection the result differs: so the check can fail.
    Control,
    /// A check on a kernel that is known to lack the mitigation: it has to fail, and does.
    UnprotectedControl,
    /// The protection should be there, and is not: every kernel that we know has this gap.
    KnownGap,
    /// It was not made, or any result is accepted on this kernel.
    Unasked,
}

/// How an observation is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement<'a> {
    /// What it is for.
    pub kind: Kind,
    /// What is expected of this kernel.
    pub expected: Cow<'a, Finding>,
    /// Whether that was the result.
    pub holds: bool,
}

impl Observation {
    /// Judges it for a kernel that is expected to lack these mitigations.
    pub fn judge(&self, lacking: &[Mitigation]) -> Judgement<'_> {
        let Expected { finding, unprotected, known_gap } = &self.expected;
        let is_lacking = |without: &[Mitigation]| without.iter().any(|it| lacking.contains(it));
        let unprotected = unprotected.as_ref().filter(|it| is_lacking(&it.without));
        let (kind, expected) = match (self.role, unprotected) {
            (Role::Unasked, _) => (Kind::Unasked, finding),
            (Role::Control, _) => (Kind::Control, finding),
            (Role::Check, Some(unprotected)) => match &unprotected.finding {
                Some(finding) => (Kind::UnprotectedControl, finding),
                None => (Kind::Unasked, finding),
            },
            (Role::Check, None) => (Kind::Check, finding),
        };
        let holds = kind == Kind::Unasked || self.observed.satisfies(expected);
        let is_gap = !holds && known_gap.as_ref().is_some_and(|gap| self.observed.satisfies(gap));
        let kind = if is_gap { Kind::KnownGap } else { kind };
        Judgement { kind, expected: Cow::Borrowed(expected), holds: holds || is_gap }
    }
}

#[cfg(test)]
mod tests {
    use testvm::guest::{Denial, Errno};

    use super::*;
    use crate::framework::Expect;

    fn observation(role: Role, expected: Expected, observed: impl Into<Finding>) -> Observation {
        let (profile, observed) = (Some(Profile::Plain), observed.into());
        Observation { profile, role, tried: "read".to_owned(), expected, observed }
    }

    #[test]
    fn a_kernel_that_lacks_a_mitigation_must_fail_its_checks() {
        const LACKING: &[Mitigation] = &[Mitigation::IoStrictDevmem];
        let by = [Mitigation::PciRevocation, Mitigation::IoStrictDevmem];
        for (lacking, observed, kind, holds) in [
            (&[][..], Denial::SIGBUS.into(), Kind::Check, true),
            (&[], Finding::Done, Kind::Check, false),
            (LACKING, Finding::Done, Kind::UnprotectedControl, true),
            (LACKING, Denial::SIGBUS.into(), Kind::UnprotectedControl, false),
            (&[Mitigation::ExclusiveRegion], Denial::SIGBUS.into(), Kind::Check, true),
        ] {
            let observation = observation(Role::Check, Denial::SIGBUS.by(&by), observed);
            let judgement = observation.judge(lacking);
            assert_eq!((judgement.kind, judgement.holds), (kind, holds));
        }
        let anything = Finding::from(0_u64).by(&by).otherwise_anything();
        let judgement = |lacking| {
            let observation = observation(Role::Check, anything.clone(), 7_u64);
            let Judgement { kind, holds, .. } = observation.judge(lacking);
            (kind, holds)
        };
        assert_eq!(judgement(&[]), (Kind::Check, false));
        assert_eq!(judgement(LACKING), (Kind::Unasked, true));
    }

    #[test]
    fn a_known_gap_differs_from_a_closed_one_and_from_another_result() {
        let expected = Expected::from(Denial::SIGBUS).except_for_known_gap(Finding::Done);
        for (observed, kind, holds) in [
            (Finding::Done, Kind::KnownGap, true),
            (Denial::SIGBUS.into(), Kind::Check, true),
            (Errno::EPERM.into(), Kind::Check, false),
        ] {
            let observation = observation(Role::Check, expected.clone(), observed);
            let judgement = observation.judge(&[]);
            assert_eq!((judgement.kind, judgement.holds), (kind, holds));
        }
    }

    #[test]
    fn an_observation_is_judged_alike_when_it_comes_back_from_json() {
        let by = [Mitigation::VfioZap];
        for observed in [Finding::Done, Finding::Read(7), Errno::EIO.into(), "a fact".into()] {
            for expected in [Finding::Done.into(), Errno::EIO.by(&by), "a fact".into()] {
                let before = observation(Role::Check, expected, observed.clone());
                let json = serde_json::to_string(&before).unwrap();
                let after: Observation = serde_json::from_str(&json).unwrap();
                for lacking in [&[][..], &by] {
                    let (before, after) = (before.judge(lacking), after.judge(lacking));
                    assert_eq!((before.kind, before.holds), (after.kind, after.holds), "{json}");
                }
            }
        }
    }
}
