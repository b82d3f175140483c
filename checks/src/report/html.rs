//! A report as one HTML page that needs nothing else: no script, no font, no network.

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;

use super::{KernelRecord, LostGuest, Report, ScenarioRecord, Verdict};
use crate::framework::{Judgement, Kind, Mitigation, Observation, Profile, Scenario};

const TEMPLATE: &str = include_str!("report.html");

#[derive(Serialize)]
struct Page {
    holds: bool,
    totals: String,
    lacking: Vec<String>,
    rows: Vec<Row>,
    columns: Vec<Column>,
}

#[derive(Serialize)]
struct Row {
    id: &'static str,
    title: &'static str,
    /// None where the kernel was not asked this scenario.
    cells: Vec<Option<Cell>>,
}

/// A scenario on a kernel.
#[derive(Serialize)]
struct Cell {
    /// Of the element with the details.
    anchor: String,
    kernel: String,
    verdict: String,
    class: &'static str,
    seconds: f64,
    reason: Option<String>,
    observations: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    guest: &'static str,
    kind: &'static str,
    tried: String,
    expected: String,
    observed: String,
    class: &'static str,
}

#[derive(Serialize)]
struct Column {
    title: String,
    image: String,
    guests: Vec<String>,
    lost: Vec<Lost>,
}

#[derive(Serialize)]
struct Lost {
    guest: &'static str,
    error: String,
    console: String,
}

impl Report {
    /// The report as a page: kernels across, scenarios down; each cell leads to what was expected and observed.
    pub fn to_html(&self) -> String {
        let page = Page {
            holds: self.holds(),
            totals: self.totals().to_string(),
            lacking: self.lacking.iter().map(ToString::to_string).collect(),
            rows: self.scenarios().map(|scenario| self.row(scenario)).collect(),
            columns: self.kernels.iter().map(column).collect(),
        };
        let mut environment = Environment::new();
        environment.add_template("report.html", TEMPLATE).expect("the template is valid");
        let template = environment.get_template("report.html").expect("it was added");
        let page = template.render(Serde(&page));
        page.expect("the template uses only what it is given")
    }

    fn row(&self, scenario: &'static Scenario) -> Row {
        let cells = self.kernels.iter().zip(1..).map(|(kernel, number)| {
            Some(cell(kernel, number, kernel.record_of(scenario)?, &self.lacking))
        });
        Row { id: scenario.id, title: scenario.title, cells: cells.collect() }
    }
}

fn cell(
    kernel: &KernelRecord,
    number: u32,
    record: &ScenarioRecord,
    lacking: &[Mitigation],
) -> Cell {
    let verdict = record.verdict(lacking);
    Cell {
        anchor: format!("{}-{number}", record.scenario.id),
        kernel: kernel.title(),
        verdict: verdict.to_string(),
        class: match verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::KnownGap => "gap",
            Verdict::Skipped => "skipped",
            Verdict::NotAsked => "failed",
        },
        seconds: record.duration.as_secs_f64(),
        reason: record.reason(lacking),
        observations: record.observations.iter().map(|it| line(it, lacking)).collect(),
    }
}

fn line(observation: &Observation, lacking: &[Mitigation]) -> Line {
    let Judgement { kind, expected, holds } = observation.judge(lacking);
    Line {
        guest: observation.profile.map(Profile::name).unwrap_or_default(),
        kind: match kind {
            Kind::Check => "check",
            Kind::Control => "control",
            Kind::UnprotectedControl => "control: unprotected kernel",
            Kind::KnownGap => "known gap",
            Kind::Unasked => "not asked",
        },
        tried: observation.tried.clone(),
        expected: expected.to_string(),
        observed: observation.observed.to_string(),
        class: match kind {
            Kind::Unasked => "skipped",
            Kind::KnownGap => "gap",
            _ if holds => "passed",
            _ => "failed",
        },
    }
}

fn column(kernel: &KernelRecord) -> Column {
    let guests = kernel.guests.iter().map(|guest| {
        let (profile, boot) = (guest.profile, guest.boot.as_secs_f64());
        format!("{profile} guest ({}), up after {boot:.1} s", profile.summary())
    });
    let lost = kernel.lost_guests.iter().map(|LostGuest { profile, error, console }| Lost {
        guest: profile.name(),
        error: error.clone(),
        console: console.clone(),
    });
    Column {
        title: kernel.title(),
        image: kernel.image.display().to_string(),
        guests: guests.collect(),
        lost: lost.collect(),
    }
}
