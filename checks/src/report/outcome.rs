//! What became of a scenario, for formats of test results. They know four outcomes.

use super::{KernelRecord, ScenarioRecord, Unfinished, Verdict};
use crate::framework::{Judgement, Kind, Mitigation, Observation, Profile};

/// What became of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is as expected.
    Passed,
    /// The kernel does not do what it must.
    Failed(String),
    /// It was not run, or shows a gap that every known kernel has; and why.
    Skipped(String),
    /// It could not be run; and why.
    Error(String),
}

impl ScenarioRecord {
    /// What became of it, on a kernel that is expected to lack these mitigations.
    pub fn outcome(&self, lacking: &[Mitigation]) -> Outcome {
        let why = self.why(lacking).unwrap_or_default();
        let of = |wanted: fn(&Judgement) -> bool| {
            let lines = self.observations.iter().filter(|it| wanted(&it.judge(lacking)));
            lines.map(|it| line(it, lacking)).collect::<Vec<_>>().join("\n")
        };
        match self.verdict(lacking) {
            Verdict::Passed => Outcome::Passed,
            Verdict::KnownGap => Outcome::Skipped(of(|it| it.kind == Kind::KnownGap)),
            Verdict::Skipped => Outcome::Skipped(why),
            Verdict::NotAsked => Outcome::Error(format!("its guest did not boot: {why}")),
            Verdict::Failed => {
                let why = match &self.unfinished {
                    Some(Unfinished::Failed(_)) => format!("it did not come to its end: {why}"),
                    _ => why,
                };
                let failures = [of(|judgement| !judgement.holds), why];
                let failures = failures.into_iter().filter(|text| !text.is_empty());
                Outcome::Failed(failures.collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// Every observation, a line each.
    pub fn lines(&self, lacking: &[Mitigation]) -> Vec<String> {
        self.observations.iter().map(|observation| line(observation, lacking)).collect()
    }
}

impl KernelRecord {
    /// The kernel and what ran it, as `Linux 6.12.9 on moat`.
    pub fn title(&self) -> String {
        format!("Linux {} on {}", self.release, self.vmm)
    }
}

/// What was tried, and what came of it.
fn line(observation: &Observation, lacking: &[Mitigation]) -> String {
    let Judgement { kind, expected, holds } = observation.judge(lacking);
    let guest =
        observation.profile.map_or_else(String::new, |it| format!("{} guest, ", Profile::name(it)));
    let (tried, observed) = (&observation.tried, &observation.observed);
    let text = match kind {
        Kind::Unasked => format!("{guest}{tried}: not asked"),
        Kind::KnownGap => {
            format!(
                "{guest}{tried}: {observed}, and should be {expected}: a gap in every known kernel"
            )
        }
        _ if holds => format!("{guest}{tried}: {observed}"),
        _ => format!("{guest}{tried}: {observed}, expected {expected}"),
    };
    // What was observed may have lines of its own, such as a kernel's message.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use testvm::guest::{Denial, Errno};

    use super::*;
    use crate::framework::{Expected, Finding, Role};
    use crate::suites::catalogue;

    fn observation(role: Role, expected: Expected, observed: impl Into<Finding>) -> Observation {
        let tried = "mmap of a\nplugged page".to_owned();
        let (profile, observed) = (Some(Profile::Plain), observed.into());
        Observation { profile, role, tried, expected, observed }
    }

    fn outcome(check: Observation, unfinished: Option<Unfinished>) -> Outcome {
        let control = observation(Role::Control, Finding::Done.into(), Finding::Done);
        let observations = vec![check, control];
        ScenarioRecord { observations, unfinished, ..ScenarioRecord::new(catalogue()[0]) }
            .outcome(&[])
    }

    #[test]
    fn an_outcome_says_why() {
        let check = |observed: Finding| observation(Role::Check, Errno::EPERM.into(), observed);
        let refused = || check(Errno::EPERM.into());
        assert_eq!(outcome(refused(), None), Outcome::Passed);
        let why = "plain guest, mmap of a plugged page: OK, expected EPERM";
        assert_eq!(outcome(check(Finding::Done), None), Outcome::Failed(why.to_owned()));
        for (unfinished, expected) in [
            (Unfinished::Skipped("no lockdown".into()), Outcome::Skipped("no lockdown".into())),
            (
                Unfinished::Failed("it hangs".into()),
                Outcome::Failed("it did not come to its end: it hangs".into()),
            ),
            (
                Unfinished::NotAsked("no console".into()),
                Outcome::Error("its guest did not boot: no console".into()),
            ),
        ] {
            assert_eq!(outcome(refused(), Some(unfinished)), expected);
        }
        let gap = Expected::from(Denial::SIGBUS).except_for_known_gap(Finding::Done);
        let Outcome::Skipped(why) = outcome(observation(Role::Check, gap, Finding::Done), None)
        else {
            panic!("a known gap is skipped");
        };
        assert!(why.contains("OK, and should be SIGBUS"), "{why}");
    }
}
