//! A report as Markdown, for GitHub's step summary.

use std::fmt::Write;

use super::{Outcome, Report};

/// GitHub drops a step's summary as a whole if it has more than 1 MiB: this leaves room for other commands of the
/// same step.
const LIMIT_BYTES: usize = 900 << 10;

impl Report {
    /// The report as Markdown: a table with kernels across and scenarios down, then what has failed.
    pub fn to_github_summary(&self) -> String {
        let mut summary = format!("### moat check: {}\n\n", self.totals());
        let titles = self.kernels.iter().map(|kernel| format!(" {} |", escape(&kernel.title())));
        let _ = writeln!(summary, "| |{}", titles.collect::<String>());
        let _ = writeln!(summary, "|---|{}", "---|".repeat(self.kernels.len()));
        for scenario in self.scenarios() {
            let cells = self.kernels.iter().map(|kernel| {
                let cell = kernel
                    .record_of(scenario)
                    .map(|record| record.verdict(&self.lacking).to_string());
                format!(" {} |", cell.unwrap_or_default())
            });
            let title = escape(scenario.title);
            let _ = writeln!(summary, "| {} {title} |{}", scenario.id, cells.collect::<String>());
        }
        let mut left_out = 0;
        for kernel in &self.kernels {
            for record in &kernel.scenarios {
                let (Outcome::Failed(why) | Outcome::Error(why)) = record.outcome(&self.lacking)
                else {
                    continue;
                };
                let id = record.scenario.id;
                let failure =
                    format!("\n**{id}** on {}\n\n```\n{why}\n```\n", escape(&kernel.title()));
                if summary.len() + failure.len() <= LIMIT_BYTES {
                    summary += &failure;
                } else {
                    left_out += 1;
                }
            }
        }
        if left_out > 0 {
            let _ = writeln!(summary, "\n{left_out} more failed; the other formats have them all.");
        }
        summary
    }
}

/// Text that Markdown shows as it is.
fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, char| {
        if "\\`*_{}[]<>#|~".contains(char) {
            escaped.push('\\');
        }
        escaped.push(char);
        escaped
    })
}
