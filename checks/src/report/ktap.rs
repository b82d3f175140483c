//! A report as KTAP, version 1 (Documentation/dev-tools/ktap.rst), as KUnit's parser reads it.

use std::fmt::Write;

use super::{Outcome, Report};
use crate::framework::Scenario;

impl Report {
    /// The report as KTAP: a test for each kernel and monitor, with its scenarios as subtests. A known gap is
    /// skipped, because KUnit's parser knows no other directive.
    pub fn to_ktap(&self) -> String {
        let mut ktap = format!("KTAP version 1\n1..{}\n", self.kernels.len());
        for (kernel, number) in self.kernels.iter().zip(1..) {
            let name = name(&kernel.title());
            let mut line = |text: String| writeln!(ktap, "{text}").expect("a string has room");
            line(format!("    KTAP version 1\n    # Subtest: {name}"));
            line(format!("    1..{}", kernel.scenarios.len()));
            let mut has_failed = false;
            for (record, number) in kernel.scenarios.iter().zip(1..) {
                let Scenario { id, title, .. } = record.scenario;
                let title = self::name(&format!("{id} {title}"));
                match record.outcome(&self.lacking) {
                    Outcome::Passed => line(format!("    ok {number} - {title}")),
                    Outcome::Skipped(why) => {
                        line(format!(
                            "    ok {number} - {title} # SKIP {}",
                            why.replace('\n', "; ")
                        ));
                    }
                    Outcome::Failed(why) | Outcome::Error(why) => {
                        has_failed = true;
                        why.lines().for_each(|why| line(format!("    # {why}")));
                        line(format!("    not ok {number} - {title}"));
                    }
                }
            }
            let result = if has_failed { "not ok" } else { "ok" };
            line(format!("{result} {number} - {name}"));
        }
        ktap
    }
}

/// A name that is not taken for a directive.
fn name(text: &str) -> String {
    text.replace('#', "")
}
