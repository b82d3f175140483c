//! Differences between the guests of two monitors with the same kernel: one of the monitors is wrong then.

use serde::Serialize;

use super::{KernelRecord, ScenarioRecord, Verdict};
use crate::framework::{Finding, Mitigation, Observation, Profile, Role};

/// The same scenarios, run on one kernel by two monitors.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The kernel's release.
    pub release: String,
    /// The monitors.
    pub vmms: [String; 2],
    /// Scenario by scenario.
    pub scenarios: Vec<ScenarioComparison>,
}

/// One scenario, run by two monitors.
#[derive(Debug, Serialize)]
pub struct ScenarioComparison {
    /// Which.
    pub id: &'static str,
    /// Its verdicts.
    pub verdicts: [Verdict; 2],
    /// How many observations both have made.
    pub compared: usize,
    /// Those with different results.
    pub differences: Vec<Difference>,
}

/// An observation with two results.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// In which guest.
    pub profile: Option<Profile>,
    /// What was tried.
    pub tried: String,
    /// The results.
    pub observed: [Finding; 2],
}

impl Comparison {
    /// Compares what was observed on the same kernel.
    pub fn of(one: &KernelRecord, other: &KernelRecord, lacking: &[Mitigation]) -> Self {
        let pairs = one.scenarios.iter().zip(&other.scenarios);
        Self {
            release: one.release.clone(),
            vmms: [one.vmm.clone(), other.vmm.clone()],
            scenarios: pairs
                .map(|(one, other)| ScenarioComparison::of(one, other, lacking))
                .collect(),
        }
    }

    /// Whether there are no differences.
    pub fn agrees(&self) -> bool {
        self.scenarios.iter().all(|scenario| scenario.differences.is_empty())
    }
}

impl ScenarioComparison {
    fn of(one: &ScenarioRecord, other: &ScenarioRecord, lacking: &[Mitigation]) -> Self {
        let mut comparison = Self {
            id: one.scenario.id,
            verdicts: [one.verdict(lacking), other.verdict(lacking)],
            compared: 0,
            differences: Vec::new(),
        };
        for ours in &one.observations {
            let is_same = |theirs: &&Observation| {
                ours.profile == theirs.profile && ours.tried == theirs.tried
            };
            let Some(theirs) = other.observations.iter().find(is_same) else { continue };
            if [ours.role, theirs.role].contains(&Role::Unasked) {
                continue;
            }
            comparison.compared += 1;
            if !is_alike(&ours.observed, &theirs.observed) {
                comparison.differences.push(Difference {
                    profile: ours.profile,
                    tried: ours.tried.clone(),
                    observed: [ours.observed.clone(), theirs.observed.clone()],
                });
            }
        }
        comparison
    }
}

/// Registers of two monitors' devices may have different values.
fn is_alike(one: &Finding, other: &Finding) -> bool {
    let is_ok = |finding: &Finding| matches!(finding, Finding::Done | Finding::Read(_));
    one == other || (is_ok(one) && is_ok(other))
}

#[cfg(test)]
mod tests {
    use testvm::guest::{Denial, Errno};

    use super::*;
    use crate::suites::catalogue;

    fn record(vmm: &str, observed: &[(Role, &str, Finding)]) -> KernelRecord {
        let observation = |(role, tried, observed): &(Role, &str, Finding)| Observation {
            profile: Some(Profile::Plain),
            role: *role,
            tried: (*tried).to_owned(),
            expected: observed.clone().into(),
            observed: observed.clone(),
        };
        let observations = observed.iter().map(observation).collect();
        let scenario = ScenarioRecord { observations, ..ScenarioRecord::new(catalogue()[0]) };
        KernelRecord {
            started_unix_milliseconds: 0,
            vmm: vmm.to_owned(),
            iommu: "virtio-iommu".to_owned(),
            image: "bzImage".into(),
            release: "6.12.0".to_owned(),
            guests: vec![],
            scenarios: vec![scenario],
            lost_guests: vec![],
        }
    }

    #[test]
    fn what_both_have_tried_and_observed_is_compared() {
        let (eperm, sigbus) = (Finding::from(Errno::EPERM), Finding::from(Denial::SIGBUS));
        let moat = record(
            "moat",
            &[
                (Role::Check, "the same", eperm.clone()),
                (Role::Check, "another", sigbus),
                (Role::Control, "identity", 1_u32.into()),
                (Role::Check, "count", Finding::Count(0)),
                (Role::Check, "only here", eperm.clone()),
            ],
        );
        let qemu = record(
            "QEMU",
            &[
                (Role::Check, "the same", eperm),
                (Role::Check, "another", Finding::Done),
                (Role::Control, "identity", 2_u32.into()),
                (Role::Unasked, "count", "not counted".into()),
            ],
        );
        let comparison = Comparison::of(&moat, &qemu, &[]);
        let scenario = &comparison.scenarios[0];
        assert_eq!(scenario.compared, 3);
        let different: Vec<_> = scenario.differences.iter().map(|it| it.tried.as_str()).collect();
        assert_eq!(different, ["another"]);
        assert!(!comparison.agrees());
        assert!(Comparison::of(&moat, &moat, &[]).agrees());
    }
}
