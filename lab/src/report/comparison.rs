//! Where guests of two monitors differ that run the same kernel: one of the monitors is wrong then.

use serde::Serialize;

use super::{Finding, KernelReport, Kind, Observation, ScenarioReport, Verdict};
use crate::{scenarios::Boot, vm::Vmm};

/// The same scenarios, told on one kernel by two monitors.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The kernel's release.
    pub release: String,
    /// The monitors.
    pub vmms: [Vmm; 2],
    /// Scenario by scenario.
    pub scenarios: Vec<ScenarioComparison>,
}

/// One scenario, told by two monitors.
#[derive(Debug, Serialize)]
pub struct ScenarioComparison {
    /// Which.
    pub id: &'static str,
    /// What came of it.
    pub verdicts: [Verdict; 2],
    /// How many things both have tried.
    pub compared: usize,
    /// Those of which something else came.
    pub differences: Vec<Difference>,
}

/// Something of which two things came.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// In which guest.
    pub boot: Option<Boot>,
    /// What was tried.
    pub tried: String,
    /// What came of it.
    pub observed: [Finding; 2],
}

impl Comparison {
    /// Of two reports on the same kernel.
    pub fn of(one: &KernelReport, other: &KernelReport) -> Self {
        let pairs = one.scenarios.iter().zip(&other.scenarios);
        Self {
            release: one.release.clone(),
            vmms: [one.vmm, other.vmm],
            scenarios: pairs.map(|(one, other)| ScenarioComparison::of(one, other)).collect(),
        }
    }

    /// Whether there is no difference.
    pub fn agrees(&self) -> bool {
        self.scenarios.iter().all(|scenario| scenario.differences.is_empty())
    }
}

impl ScenarioComparison {
    fn of(one: &ScenarioReport, other: &ScenarioReport) -> Self {
        let mut comparison = Self {
            id: one.scenario.id,
            verdicts: [one.verdict(), other.verdict()],
            compared: 0,
            differences: Vec::new(),
        };
        for ours in &one.observations {
            let is_same =
                |theirs: &&Observation| ours.boot == theirs.boot && ours.tried == theirs.tried;
            let Some(theirs) = other.observations.iter().find(is_same) else { continue };
            if [ours.kind, theirs.kind].contains(&Kind::Unasked) {
                continue;
            }
            comparison.compared += 1;
            if !is_alike(&ours.observed, &theirs.observed) {
                comparison.differences.push(Difference {
                    boot: ours.boot,
                    tried: ours.tried.clone(),
                    observed: [ours.observed.clone(), theirs.observed.clone()],
                });
            }
        }
        comparison
    }
}

/// Two devices need not read the same.
fn is_alike(one: &Finding, other: &Finding) -> bool {
    let is_ok = |finding: &Finding| matches!(finding, Finding::Done | Finding::Read(_));
    one == other || (is_ok(one) && is_ok(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guest::{Denial, Errno},
        scenarios::CATALOGUE,
        vm::{Accelerator, Iommu},
    };

    fn report(vmm: Vmm, observed: &[(Kind, &str, Finding)]) -> KernelReport {
        let observation = |(kind, tried, observed): &(Kind, &str, Finding)| Observation {
            boot: Some(Boot::Plain),
            kind: *kind,
            tried: (*tried).to_owned(),
            expected: observed.clone(),
            observed: observed.clone(),
            holds: true,
        };
        let observations = observed.iter().map(observation).collect();
        let scenario = ScenarioReport { scenario: &CATALOGUE[0], observations, unfinished: None };
        KernelReport {
            vmm,
            image: "bzImage".into(),
            release: "6.12.0".to_owned(),
            scenarios: vec![scenario],
            troubled_guests: vec![],
        }
    }

    #[test]
    fn what_both_have_tried_and_told_is_compared() {
        let (eperm, sigbus) = (Finding::from(Errno::EPERM), Finding::from(Denial::SIGBUS));
        let moat = report(
            Vmm::Moat,
            &[
                (Kind::Check, "the same", eperm.clone()),
                (Kind::Check, "another", sigbus),
                (Kind::Control, "identity", 1_u32.into()),
                (Kind::Check, "count", "0".into()),
                (Kind::Check, "only here", eperm.clone()),
            ],
        );
        let qemu = report(
            Vmm::Qemu(Accelerator::Tcg, Iommu::Virtio),
            &[
                (Kind::Check, "the same", eperm),
                (Kind::Check, "another", Finding::Done),
                (Kind::Control, "identity", 2_u32.into()),
                (Kind::Unasked, "count", "not counted".into()),
            ],
        );
        let comparison = Comparison::of(&moat, &qemu);
        let scenario = &comparison.scenarios[0];
        assert_eq!(scenario.compared, 3);
        let different: Vec<_> = scenario.differences.iter().map(|it| it.tried.as_str()).collect();
        assert_eq!(different, ["another"]);
        assert!(!comparison.agrees());
        assert!(Comparison::of(&moat, &moat).agrees());
    }
}
