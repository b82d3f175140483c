//! A report as JUnit's XML: such that Jenkins' schema accepts it, and GitLab and others show all of it.

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{KernelRecord, Outcome, Report, ScenarioRecord};
use crate::framework::Mitigation;

impl Report {
    /// The report as JUnit's XML. Kernel and monitor are in `classname`, because GitLab drops tests of the
    /// same name, and reasons are in the elements' content, because it shows no attributes.
    pub fn to_junit(&self) -> String {
        let mut report = quick_junit::Report::new("moat check");
        report.add_test_suites(self.kernels.iter().map(|kernel| suite(kernel, &self.lacking)));
        report.to_string().expect("a report has only what XML can express")
    }
}

fn suite(kernel: &KernelRecord, lacking: &[Mitigation]) -> TestSuite {
    let mut suite = TestSuite::new(kernel.title());
    suite.set_time(kernel.scenarios.iter().map(|record| record.duration).sum());
    suite.add_test_cases(kernel.scenarios.iter().map(|record| {
        let mut case = case(record, lacking);
        // A dot would start another level where names are shown as a tree.
        case.set_classname(format!("{}.{}", kernel.vmm, kernel.release.replace('.', "_")));
        case
    }));
    suite
}

fn case(record: &ScenarioRecord, lacking: &[Mitigation]) -> TestCase {
    let status = match record.outcome(lacking) {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Skipped(why) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(first_line(&why)).set_description(why);
            status
        }
        Outcome::Failed(why) => unsuccessful(NonSuccessKind::Failure, why),
        Outcome::Error(why) => unsuccessful(NonSuccessKind::Error, why),
    };
    let mut case =
        TestCase::new(format!("{} {}", record.scenario.id, record.scenario.title), status);
    case.set_time(record.duration);
    if !record.observations.is_empty() {
        case.set_system_out(record.lines(lacking).join("\n"));
    }
    case
}

fn unsuccessful(kind: NonSuccessKind, why: String) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(first_line(&why)).set_description(why);
    status
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
