//! What was observed on kernels, and how it is judged.

mod comparison;
mod github;
mod html;
mod json;
mod junit;
mod kcidb;
mod ktap;
mod outcome;
mod record;
mod text;
mod verdict;

pub use comparison::{Comparison, Difference, ScenarioComparison};
pub use outcome::Outcome;
pub use record::{GuestRecord, KernelRecord, LostGuest, ScenarioRecord, Unfinished};
pub use verdict::{Totals, Verdict};

use crate::framework::{Mitigation, Scenario};
use crate::suites::catalogue;

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

    /// The scenarios that were run on some kernel, in the order of the catalogue.
    fn scenarios(&self) -> impl Iterator<Item = &'static Scenario> {
        let was_run = |scenario: &&'static Scenario| {
            self.kernels.iter().any(|kernel| kernel.record_of(scenario).is_some())
        };
        catalogue().iter().copied().filter(was_run)
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
            started_unix_milliseconds: 1_764_300_000_000,
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

    /// A scenario with each verdict.
    fn of_every_verdict() -> Report {
        let unfinished = [
            None,
            Some(Unfinished::Skipped("no lockdown".to_owned())),
            Some(Unfinished::Failed("it <hangs> & # waits".to_owned())),
            Some(Unfinished::NotAsked("no boot".to_owned())),
        ];
        let scenarios = unfinished.into_iter().zip(catalogue()).map(|(unfinished, scenario)| {
            ScenarioRecord { scenario, ..record(whole(), unfinished) }
        });
        report(scenarios.collect())
    }

    #[test]
    fn ktap_has_a_plan_and_a_line_for_each_scenario() {
        let ktap = of_every_verdict().to_ktap();
        let lines: Vec<_> = ktap.lines().collect();
        let titles: Vec<_> = catalogue().iter().map(|it| it.title.replace('#', "")).collect();
        let ids: Vec<_> = catalogue().iter().map(|it| it.id).collect();
        let expected = [
            "KTAP version 1",
            "1..1",
            "    KTAP version 1",
            "    # Subtest: Linux 6.12.0 on moat",
            "    1..4",
            &format!("    ok 1 - {} {}", ids[0], titles[0]),
            &format!("    ok 2 - {} {} # SKIP no lockdown", ids[1], titles[1]),
            "    # it did not come to its end: it <hangs> & # waits",
            &format!("    not ok 3 - {} {}", ids[2], titles[2]),
            "    # its guest did not boot: no boot",
            &format!("    not ok 4 - {} {}", ids[3], titles[3]),
            "not ok 1 - Linux 6.12.0 on moat",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn junit_has_a_case_for_each_scenario_with_reasons_as_content() {
        let junit = of_every_verdict().to_junit();
        for expected in [
            r#"tests="4""#,
            r#"failures="1""#,
            r#"errors="1""#,
            r#"classname="moat.6_12_0""#,
            "no lockdown</skipped>",
            "it did not come to its end: it &lt;hangs&gt; &amp; # waits</failure>",
            "its guest did not boot: no boot</error>",
            "plain guest, mmap of a plugged page: EPERM",
        ] {
            assert!(junit.contains(expected), "{expected} in {junit}");
        }
    }

    #[test]
    fn a_github_summary_has_a_row_for_each_scenario_and_stays_below_its_limit() {
        let mut report = of_every_verdict();
        let summary = report.to_github_summary();
        let row = format!("| {} ", catalogue()[2].id);
        assert!(summary.lines().any(|line| line.starts_with(&row) && line.ends_with("FAILED |")));
        assert!(summary.contains("it did not come to its end"), "{summary}");
        let long = Some(Unfinished::Failed("long ".repeat(100_000)));
        report.kernels[0].scenarios = vec![record(whole(), long.clone()), record(whole(), long)];
        let summary = report.to_github_summary();
        assert!(summary.len() < 1 << 20 && summary.contains("1 more failed"), "{}", summary.len());
    }

    #[test]
    fn kcidb_objects_refer_to_each_other() {
        let value: serde_json::Value =
            serde_json::from_str(&of_every_verdict().to_kcidb("lab")).unwrap();
        let [checkout, build] = ["checkouts", "builds"].map(|kind| &value[kind][0]);
        assert_eq!(build["checkout_id"], checkout["id"]);
        let tests = value["tests"].as_array().unwrap();
        let statuses: Vec<_> = tests.iter().map(|test| test["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["PASS", "SKIP", "FAIL", "MISS"]);
        for test in tests {
            assert_eq!(test["build_id"], build["id"]);
            assert!(test["id"].as_str().unwrap().starts_with("lab:6_12_0_moat_"), "{test}");
        }
    }

    #[test]
    fn a_page_shows_every_scenario_and_escapes_what_was_observed() {
        let page = of_every_verdict().to_html();
        for scenario in &catalogue()[..4] {
            let anchor = format!("{}-1", scenario.id);
            assert!(page.contains(&format!("href=\"#{anchor}\"")), "{anchor}");
            assert!(page.contains(&format!("id=\"{anchor}\"")), "{anchor}");
        }
        assert!(page.contains("it &lt;hangs&gt; &amp; # waits"));
        assert!(!page.contains("<script") && !page.contains("http"));
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
