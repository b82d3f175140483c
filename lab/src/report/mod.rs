//! What was tried, what was expected, what was observed, and what follows from it.

mod comparison;
mod finding;
mod observations;

use std::{collections::HashSet, path::PathBuf};

use serde::{Serialize, Serializer, ser::SerializeStruct};

pub use comparison::{Comparison, Difference, ScenarioComparison};
pub use finding::{Finding, Observe};
pub use observations::{Observations, Protection};

use crate::{
    scenarios::{Boot, Scenario},
    vm::Vmm,
};

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// In which guest; none for what was read from a kernel's configuration.
    pub boot: Option<Boot>,
    /// What it is for.
    pub kind: Kind,
    /// What was tried.
    pub tried: String,
    /// What should come of it.
    pub expected: Finding,
    /// What came of it.
    pub observed: Finding,
    /// Whether one satisfies the other.
    pub holds: bool,
}

/// What an observation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The protection is there.
    Check,
    /// Where the protection is not, the outcome differs: so the check can fail.
    Control,
    /// A check on a kernel that is known to lack the protection: it has to fail, and does.
    UnprotectedControl,
    /// The protection should be there, and is not: every kernel that we know has this gap.
    KnownGap,
    /// The monitor does not tell, or there is no such thing in this guest.
    Unasked,
}

/// What follows for a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every observation is as expected.
    Passed,
    /// Some are not, or could not be made.
    Failed,
    /// Every observation is as expected, and some show a gap that is known.
    KnownGap,
    /// This kernel, or this monitor, cannot be asked.
    Skipped,
    /// The guest in which it would have been asked did not boot.
    NotAsked,
}

/// What became of a scenario on one kernel.
#[derive(Debug)]
pub struct ScenarioReport {
    /// Which.
    pub scenario: &'static Scenario,
    /// What was observed.
    pub observations: Vec<Observation>,
    /// Why it was not told, or not to its end.
    pub unfinished: Option<Unfinished>,
}

/// Why a scenario was not told, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfinished {
    /// The kernel or the monitor lacks what it needs.
    Skipped(String),
    /// Something went wrong.
    Failed(String),
    /// The guest did not boot.
    NotAsked(String),
}

impl ScenarioReport {
    /// What follows.
    pub fn verdict(&self) -> Verdict {
        match &self.unfinished {
            _ if self.observations.iter().any(|observation| !observation.holds) => Verdict::Failed,
            Some(Unfinished::Failed(_)) => Verdict::Failed,
            Some(Unfinished::NotAsked(_)) => Verdict::NotAsked,
            Some(Unfinished::Skipped(_)) => Verdict::Skipped,
            None if self.has(&[Kind::KnownGap]) => Verdict::KnownGap,
            None => Verdict::Passed,
        }
    }

    /// Fails it unless it has been told whole: a check that nothing controls proves nothing.
    pub fn require_checks_and_controls(&mut self) {
        let missing = match () {
            () if self.unfinished.is_some() => return,
            () if !self.has(&[Kind::Check, Kind::UnprotectedControl, Kind::KnownGap]) => "check",
            () if !self.has(&[Kind::Control]) => "control",
            () => return,
        };
        self.unfinished = Some(Unfinished::Failed(format!("it was told without a {missing}")));
    }

    fn has(&self, kinds: &[Kind]) -> bool {
        self.observations.iter().any(|observation| kinds.contains(&observation.kind))
    }
}

impl Serialize for ScenarioReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("ScenarioReport", 5)?;
        report.serialize_field("id", self.scenario.id)?;
        report.serialize_field("title", self.scenario.title)?;
        report.serialize_field("verdict", &self.verdict())?;
        report.serialize_field("unfinished", &self.unfinished)?;
        report.serialize_field("observations", &self.observations)?;
        report.end()
    }
}

/// A guest that was lost, or in which a story did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TroubledGuest {
    /// How it was started.
    pub boot: Boot,
    /// What went wrong.
    pub error: String,
    /// The last lines of the guest's console.
    pub console: String,
}

/// What became of the scenarios on one kernel.
#[derive(Debug, Serialize)]
pub struct KernelReport {
    /// What ran its guests.
    pub vmm: Vmm,
    /// The kernel's image.
    pub image: PathBuf,
    /// Its release.
    pub release: String,
    /// The scenarios, in the order of the catalogue.
    pub scenarios: Vec<ScenarioReport>,
    /// Guests in which something went wrong.
    pub troubled_guests: Vec<TroubledGuest>,
}

/// How many scenarios came to which verdict, a scenario counted once a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Totals {
    pub passed: usize,
    pub failed: usize,
    pub known_gaps: usize,
    pub skipped: usize,
    pub not_asked: usize,
}

impl KernelReport {
    /// The guests in which something was observed.
    pub fn boots(&self) -> impl Iterator<Item = Boot> {
        let observations = self.scenarios.iter().flat_map(|scenario| &scenario.observations);
        let seen: HashSet<_> = observations.filter_map(|observation| observation.boot).collect();
        Boot::ALL.into_iter().filter(move |boot| seen.contains(boot))
    }
}

/// The whole of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Kernel by kernel, and monitor by monitor.
    pub kernels: Vec<KernelReport>,
}

impl Report {
    /// How many scenarios came to which verdict.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for scenario in self.kernels.iter().flat_map(|kernel| &kernel.scenarios) {
            match scenario.verdict() {
                Verdict::Passed => totals.passed += 1,
                Verdict::Failed => totals.failed += 1,
                Verdict::KnownGap => totals.known_gaps += 1,
                Verdict::Skipped => totals.skipped += 1,
                Verdict::NotAsked => totals.not_asked += 1,
            }
        }
        totals
    }

    /// Where the monitors differ that ran the same kernels: each one against the first.
    pub fn comparisons(&self) -> Vec<Comparison> {
        let same_kernel = self.kernels.chunk_by(|one, other| one.image == other.image);
        same_kernel
            .flat_map(|reports| reports[1..].iter().map(|other| Comparison::of(&reports[0], other)))
            .collect()
    }

    /// Whether all that could be asked holds, and no monitor contradicts another; not so when nothing
    /// could be asked, or a guest did not boot.
    pub fn holds(&self) -> bool {
        let totals = self.totals();
        let all_asked = totals.failed == 0 && totals.not_asked == 0;
        all_asked && totals.passed > 0 && self.comparisons().iter().all(Comparison::agrees)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("Report", 4)?;
        report.serialize_field("holds", &self.holds())?;
        report.serialize_field("totals", &self.totals())?;
        report.serialize_field("kernels", &self.kernels)?;
        report.serialize_field("comparisons", &self.comparisons())?;
        report.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{guest::Errno, scenarios::CATALOGUE};

    fn report(holds: &[(Kind, bool)], unfinished: Option<Unfinished>) -> ScenarioReport {
        let observation = |&(kind, holds): &(Kind, bool)| Observation {
            boot: Some(Boot::Plain),
            kind,
            tried: "mmap of a plugged page".to_owned(),
            expected: Errno::EPERM.into(),
            observed: if holds { Errno::EPERM.into() } else { Finding::Done },
            holds,
        };
        let observations = holds.iter().map(observation).collect();
        ScenarioReport { scenario: &CATALOGUE[0], observations, unfinished }
    }

    const WHOLE: [(Kind, bool); 2] = [(Kind::Check, true), (Kind::Control, true)];

    #[test]
    fn one_observation_that_does_not_hold_fails_a_scenario() {
        assert_eq!(report(&WHOLE, None).verdict(), Verdict::Passed);
        for kind in [Kind::Check, Kind::Control, Kind::UnprotectedControl] {
            let skipped = Some(Unfinished::Skipped("no lockdown".to_owned()));
            for unfinished in [None, skipped] {
                let report = report(&[WHOLE[0], (kind, false), WHOLE[1]], unfinished);
                assert_eq!(report.verdict(), Verdict::Failed);
            }
        }
    }

    #[test]
    fn a_scenario_without_a_control_or_without_a_check_fails() {
        for (observations, missing) in [
            (&WHOLE[..1], "control"),
            (&WHOLE[1..], "check"),
            (&[], "check"),
            (&[(Kind::UnprotectedControl, true)], "control"),
        ] {
            let mut report = report(observations, None);
            report.require_checks_and_controls();
            assert_eq!(report.verdict(), Verdict::Failed);
            let Some(Unfinished::Failed(why)) = report.unfinished else { panic!("{report:?}") };
            assert!(why.contains(missing), "{why}");
        }
        let mut whole = report(&WHOLE, None);
        whole.require_checks_and_controls();
        assert_eq!(whole.verdict(), Verdict::Passed);
    }

    #[test]
    fn a_run_holds_if_something_passed_and_nothing_failed() {
        let skipped = || report(&[], Some(Unfinished::Skipped("no lockdown".to_owned())));
        let failed = || report(&WHOLE, Some(Unfinished::Failed("it hangs".to_owned())));
        let passed = || report(&WHOLE, None);
        let not_asked = || report(&[], Some(Unfinished::NotAsked("it does not boot".to_owned())));
        for (scenarios, holds) in [
            (vec![], false),
            (vec![skipped()], false),
            (vec![passed(), skipped()], true),
            (vec![passed(), failed()], false),
            (vec![passed(), not_asked()], false),
        ] {
            let kernel = KernelReport {
                vmm: Vmm::Moat,
                image: "bzImage".into(),
                release: "6.12.0".to_owned(),
                scenarios,
                troubled_guests: vec![],
            };
            assert_eq!(Report { kernels: vec![kernel] }.holds(), holds);
        }
    }

    #[test]
    fn json_says_what_the_table_says() {
        let json = serde_json::to_value(report(&WHOLE[..1], None)).unwrap();
        assert_eq!(json["id"], CATALOGUE[0].id);
        assert_eq!(json["verdict"], "passed");
        let observation = &json["observations"][0];
        assert_eq!(observation["boot"], "no parameters");
        assert_eq!(observation["kind"], "check");
        assert_eq!(observation["expected"], "EPERM");
        assert_eq!(observation["holds"], true);
    }
}
