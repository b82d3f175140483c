//! A report as tables for people.

use std::fmt;

use comfy_table::{Table, presets};

use super::{
    Comparison, Difference, KernelRecord, LostGuest, Report, ScenarioComparison, ScenarioRecord,
    Totals, Verdict,
};
use crate::framework::{Kind, Mitigation, Observation, Profile, Scenario};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kernel in &self.kernels {
            write_kernel(f, kernel, &self.lacking)?;
        }
        for comparison in self.comparisons() {
            writeln!(f, "{comparison}")?;
        }
        self.totals().fmt(f)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, known_gaps, skipped, not_asked } = self;
        write!(
            f,
            "{passed} passed, {failed} failed, {known_gaps} known gaps of the kernel, {skipped} skipped"
        )?;
        match not_asked {
            0 => Ok(()),
            _ => write!(f, ", {not_asked} not asked, for a guest did not boot"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::KnownGap => "known gap",
            Self::Skipped => "skipped",
            Self::NotAsked => "not asked",
        })
    }
}

fn write_kernel(
    f: &mut fmt::Formatter<'_>,
    kernel: &KernelRecord,
    lacking: &[Mitigation],
) -> fmt::Result {
    writeln!(f, "{}, {}", kernel.title(), kernel.image.display())?;
    for profile in kernel.profiles() {
        write!(f, "  {profile} guest: {}", profile.summary())?;
        match profile.has_iommu() {
            true => writeln!(f, ", behind {}", kernel.iommu)?,
            false => writeln!(f)?,
        }
    }
    writeln!(f, "\n{}\n", table(kernel, lacking))?;
    for (reason, scenarios) in reasons(kernel, lacking) {
        writeln!(f, "{} {reason}", scenarios.join(" "))?;
    }
    for LostGuest { profile, error, console } in &kernel.lost_guests {
        writeln!(f, "\nThe console of the {profile} guest ({error}) ended with\n{console}")?;
    }
    writeln!(f)
}

fn table(kernel: &KernelRecord, lacking: &[Mitigation]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["scenario", "guest", "tried", "expected", "observed", "verdict"]);
    for record in &kernel.scenarios {
        let Scenario { id, title, .. } = record.scenario;
        table.add_row([*id, "", *title, "", "", &record.verdict(lacking).to_string()]);
        table.add_rows(record.observations.iter().map(|observed| row(id, observed, lacking)));
    }
    table
}

fn row(id: &str, observation: &Observation, lacking: &[Mitigation]) -> [String; 6] {
    let judgement = observation.judge(lacking);
    let kind = match judgement.kind {
        Kind::Check => "",
        Kind::Control => "control: ",
        Kind::UnprotectedControl => "control, unprotected kernel: ",
        Kind::KnownGap => "known gap of the kernel: ",
        Kind::Unasked => "not asked: ",
    };
    let verdict = match judgement.kind {
        Kind::KnownGap => "known gap",
        Kind::Unasked => "",
        _ if judgement.holds => "ok",
        _ => "FAILED",
    };
    [
        id.to_owned(),
        observation.profile.map(Profile::name).unwrap_or_default().to_owned(),
        format!("  {kind}{}", observation.tried),
        judgement.expected.to_string(),
        observation.observed.to_string(),
        verdict.to_owned(),
    ]
}

/// Why scenarios have not passed, each reason once, with those scenarios.
fn reasons(kernel: &KernelRecord, lacking: &[Mitigation]) -> Vec<(String, Vec<&'static str>)> {
    let mut reasons: Vec<(String, Vec<&'static str>)> = Vec::new();
    for record in &kernel.scenarios {
        let ScenarioRecord { scenario, .. } = record;
        let Some(reason) = record.reason(lacking) else { continue };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, scenarios)) => scenarios.push(scenario.id),
            None => reasons.push((reason, vec![scenario.id])),
        }
    }
    reasons
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, other] = &self.vmms;
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["scenario", one, other, "compared", ""]);
        for ScenarioComparison { id, verdicts, compared, differences } in &self.scenarios {
            let agreement = match (compared, differences.as_slice()) {
                (0, _) => "not comparable",
                (_, []) => "agree",
                _ => "DIFFER",
            };
            let [one, other] = verdicts.map(|verdict| verdict.to_string());
            table.add_row([id, one.as_str(), &other, &compared.to_string(), agreement]);
        }
        writeln!(f, "Linux {}, {one} and {other}\n\n{table}\n", self.release)?;
        for ScenarioComparison { id, differences, .. } in &self.scenarios {
            for Difference { profile, tried, observed: [ours, theirs] } in differences {
                let guest = profile.map(Profile::name).unwrap_or_default();
                writeln!(f, "{id}, {guest} guest, {tried}: {one} {ours}, {other} {theirs}")?;
            }
        }
        Ok(())
    }
}
