//! What was observed on kernels, and how it is judged.

mod comparison;
mod json;
mod record;
mod text;
mod verdict;

pub use comparison::{Comparison, Difference, ScenarioComparison};
pub use record::{GuestRecord, KernelRecord, LostGuest, ScenarioRecord, Unfinished};
pub use verdict::{Totals, Verdict};

use crate::framework::Mitigation;

/// What was observed on kernels, and what they are expected to lack.
#[derive(Debug, Default)]
pub struct Report {
    /// What every kernel is expected to lack.
    pub lacking: Vec<Mitigation>,
    /// Kernel by kernel, and monitor by monitor.
    pub kernels: Vec<KernelRecord>,
}

impl Report {
    /// How many scenarios have which verdict, a scenario counted once per kernel.
    pub fn totals(&self) -> Totals {
        let scenarios = self.kernels.iter().flat_map(|kernel| &kernel.scenarios);
        scenarios.map(|scenario| scenario.verdict(&self.lacking)).collect()
    }

    /// Compares the monitors that ran the same kernels: each one with the first.
    pub fn comparisons(&self) -> Vec<Comparison> {
        let same_kernel = self.kernels.chunk_by(|one, other| one.image == other.image);
        same_kernel
            .flat_map(|records| {
                let (first, others) = records.split_first().expect("a chunk is not empty");
                others.iter().map(|other| Comparison::of(first, other, &self.lacking))
            })
            .collect()
    }

    /// Whether all that could be checked holds, and no monitor contradicts another; not if nothing could
    /// be checked, or a guest did not boot.
    pub fn holds(&self) -> bool {
        let totals = self.totals();
        let all_asked = totals.failed == 0 && totals.not_asked == 0;
        all_asked && totals.passed > 0 && self.comparisons().iter().all(Comparison::agrees)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testvm::guest::Errno;

    use super::*;
    use crate::{
        framework::{Finding, Observation, Profile, Role},
        suites::catalogue,
    };

    fn observation(role: Role, holds: bool) -> Observation {
        Observation {
            profile: Some(Profile::Plain),
            role,
            tried: "mmap of a plugged page".to_owned(),
            expected: Errno::EPERM.into(),
            observed: if holds { Errno::EPERM.into() } else { Finding::Done },
        }
    }

    fn whole() -> Vec<Observation> {
        vec![observation(Role::Check, true), observation(Role::Control, true)]
    }

    fn record(observations: Vec<Observation>, unfinished: Option<Unfinished>) -> ScenarioRecord {
        let duration = Duration::from_millis(1234);
        ScenarioRecord { observations, unfinished, duration, ..ScenarioRecord::new(catalogue()[0]) }
    }

    fn report(scenarios: Vec<ScenarioRecord>) -> Report {
        let kernel = KernelRecord {
            vmm: "moat".to_owned(),
            iommu: "virtio-iommu".to_owned(),
            image: "bzImage".into(),
            release: "6.12.0".to_owned(),
            guests: vec![GuestRecord { profile: Profile::Plain, boot: Duration::from_secs(2) }],
            scenarios,
            lost_guests: vec![],
        };
        Report { lacking: vec![], kernels: vec![kernel] }
    }

    #[test]
    fn one_observation_that_does_not_hold_fails_a_scenario() {
        assert_eq!(record(whole(), None).verdict(&[]), Verdict::Passed);
        for role in [Role::Check, Role::Control] {
            let skipped = Some(Unfinished::Skipped("no lockdown".to_owned()));
            for unfinished in [None, skipped] {
                let mut observations = whole();
                observations.insert(1, observation(role, false));
                assert_eq!(record(observations, unfinished).verdict(&[]), Verdict::Failed);
            }
        }
    }

    #[test]
    fn a_scenario_without_a_control_or_without_a_check_fails() {
        for (observations, missing) in [
            (vec![observation(Role::Check, true)], "control"),
            (vec![observation(Role::Control, true)], "check"),
            (vec![], "check"),
        ] {
            let record = record(observations, None);
            assert_eq!(record.verdict(&[]), Verdict::Failed);
            let why = record.reason(&[]).unwrap();
            assert!(why.contains(missing), "{why}");
        }
        assert_eq!(record(whole(), None).reason(&[]), None);
    }

    #[test]
    fn a_run_holds_if_something_passed_and_nothing_failed() {
        let skipped = || record(vec![], Some(Unfinished::Skipped("no lockdown".to_owned())));
        let failed = || record(whole(), Some(Unfinished::Failed("it hangs".to_owned())));
        let passed = || record(whole(), None);
        let not_asked = || record(vec![], Some(Unfinished::NotAsked("no boot".to_owned())));
        for (scenarios, holds) in [
            (vec![], false),
            (vec![skipped()], false),
            (vec![passed(), skipped()], true),
            (vec![passed(), failed()], false),
            (vec![passed(), not_asked()], false),
        ] {
            assert_eq!(report(scenarios).holds(), holds);
        }
    }

    #[test]
    fn a_report_in_json_is_complete_and_is_judged_alike_when_it_is_read() {
        let before = report(vec![record(whole(), None)]);
        let json = before.to_json();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let scenario = &value["kernels"][0]["scenarios"][0];
        assert_eq!(scenario["id"], catalogue()[0].id);
        assert_eq!(scenario["verdict"], "passed");
        assert_eq!(scenario["milliseconds"], 1234);
        let observation = &scenario["observations"][0];
        assert_eq!(observation["profile"], "plain");
        assert_eq!(observation["judgement"]["kind"], "check");
        assert_eq!(observation["judgement"]["expected"], "EPERM");
        assert_eq!(observation["judgement"]["holds"], true);

        let after = Report::from_json(&json).unwrap();
        assert_eq!(after.to_json(), json);
        let unknown = json.replace(catalogue()[0].id, "VM99");
        let error = Report::from_json(&unknown).unwrap_err();
        assert!(error.to_string().contains("VM99"), "{error}");
    }
}
