//! The verdict on a scenario.

use serde::Serialize;

use super::{ScenarioRecord, Unfinished};
use crate::framework::{Kind, Mitigation};

/// The verdict on a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every observation is as expected.
    Passed,
    /// Some are not, or could not be made.
    Failed,
    /// Every observation is as expected, and some show a gap that is known.
    KnownGap,
    /// This kernel, or this monitor, lacks what it needs.
    Skipped,
    /// The guest in which it would have been run did not boot.
    NotAsked,
}

impl ScenarioRecord {
    /// The verdict for a kernel that is expected to lack these mitigations.
    pub fn verdict(&self, lacking: &[Mitigation]) -> Verdict {
        let judged = || self.observations.iter().map(|observation| observation.judge(lacking));
        match &self.unfinished {
            _ if judged().any(|judgement| !judgement.holds) => Verdict::Failed,
            Some(Unfinished::Failed(_)) => Verdict::Failed,
            Some(Unfinished::NotAsked(_)) => Verdict::NotAsked,
            Some(Unfinished::Skipped(_)) => Verdict::Skipped,
            None if self.missing(lacking).is_some() => Verdict::Failed,
            None if judged().any(|judgement| judgement.kind == Kind::KnownGap) => Verdict::KnownGap,
            None => Verdict::Passed,
        }
    }

    /// Why it has not passed, where the observations themselves do not show it.
    pub fn reason(&self, lacking: &[Mitigation]) -> Option<String> {
        let why = self.why(lacking)?;
        let what = match &self.unfinished {
            Some(Unfinished::Skipped(_)) => "skipped",
            Some(Unfinished::NotAsked(_)) => "not asked",
            Some(Unfinished::Failed(_)) | None => "FAILED",
        };
        Some(format!("{what}: {why}"))
    }

    /// The reason alone.
    pub(super) fn why(&self, lacking: &[Mitigation]) -> Option<String> {
        match &self.unfinished {
            Some(
                Unfinished::Skipped(why) | Unfinished::Failed(why) | Unfinished::NotAsked(why),
            ) => Some(why.clone()),
            None => self.missing(lacking).map(|missing| format!("it was run without a {missing}")),
        }
    }

    /// Whether it has no check or no control: a check without a control proves nothing.
    fn missing(&self, lacking: &[Mitigation]) -> Option<&'static str> {
        const CHECKS: [Kind; 3] = [Kind::Check, Kind::UnprotectedControl, Kind::KnownGap];
        let has = |kinds: &[Kind]| {
            self.observations.iter().any(|it| kinds.contains(&it.judge(lacking).kind))
        };
        match () {
            () if !has(&CHECKS) => Some("check"),
            () if !has(&[Kind::Control]) => Some("control"),
            () => None,
        }
    }
}

/// How many scenarios have which verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Totals {
    pub passed: usize,
    pub failed: usize,
    pub known_gaps: usize,
    pub skipped: usize,
    pub not_asked: usize,
}

impl FromIterator<Verdict> for Totals {
    fn from_iter<T: IntoIterator<Item = Verdict>>(verdicts: T) -> Self {
        let mut totals = Self::default();
        for verdict in verdicts {
            match verdict {
                Verdict::Passed => totals.passed += 1,
                Verdict::Failed => totals.failed += 1,
                Verdict::KnownGap => totals.known_gaps += 1,
                Verdict::Skipped => totals.skipped += 1,
                Verdict::NotAsked => totals.not_asked += 1,
            }
        }
        totals
    }
}
